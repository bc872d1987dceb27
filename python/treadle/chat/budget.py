"""How much a chat template may compute, and the books of one rendering.

A template comes with the model, so it is as untrusted as the weights. Everything it does is paid
from a budget that grows with the messages it is given: steps, CPU seconds of this thread, the size
of one value and the total of all values. Every value a template builds is bounded, so every single
operation on values is too, and the clock is looked at between operations.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from treadle.errors import ChatTemplateError

_BASE_CHARS = 1 << 20  # what a template may write besides four times its input
_VALUE_FACTOR = 4  # size of one list or dict, in units of the output limit
_TOTAL_FACTOR = 16  # all values together, in units of the output limit
_MAX_STEPS = 1_000_000
_MAX_SECONDS = 0.5
_MAX_INT_BITS = 8192
_MAX_DEPTH = 100
_CLOCK_EVERY = 256  # steps between two looks at the clock
_CHARS_PER_STEP = 256


class LimitError(ChatTemplateError):
    """A template ran into one of the limits."""

    code = "template_limit"


class Budget:
    """The books of one rendering; see :data:`CURRENT`."""

    def __init__(self, input_weight: int = 0) -> None:
        self.max_chars = _BASE_CHARS + 4 * input_weight
        self._max_total = _TOTAL_FACTOR * self.max_chars
        self._total = 0
        self._steps = 0
        self._next_clock = _CLOCK_EVERY
        scale = 1 + input_weight / _BASE_CHARS
        self._max_steps = int(_MAX_STEPS * scale)
        self._max_seconds = _MAX_SECONDS * scale
        # This thread's CPU time: a busy machine must not fail an honest template.
        self._start = time.thread_time()
        # Weights of containers by id; they are kept alive, so that an id stays theirs.
        self._weights: dict[int, tuple[Any, int]] = {}

    def step(self, count: int = 1) -> None:
        """Pays for ``count`` small operations."""
        self._steps += count
        if self._steps >= self._next_clock:
            self._next_clock = self._steps + _CLOCK_EVERY
            if self._steps > self._max_steps:
                raise LimitError(
                    f"the chat template stopped after {self._max_steps} steps; does it loop?"
                )
            if time.thread_time() - self._start > self._max_seconds:
                raise LimitError(
                    f"the chat template stopped after {self._max_seconds:.1f} s of computing; "
                    "does it loop?"
                )

    def spend(self, chars: int) -> None:
        """Pays for a value of this size that is about to be made, or has just been made."""
        if chars > _VALUE_FACTOR * self.max_chars:
            raise LimitError(
                f"the chat template makes a value of size {chars}, more than the limit of "
                f"{_VALUE_FACTOR * self.max_chars}"
            )
        self._total += chars
        if self._total > self._max_total:
            raise LimitError(
                f"the values the chat template makes exceed {self._max_total} characters together"
            )
        self.step(1 + chars // _CHARS_PER_STEP)

    def text(self, chars: int) -> None:
        """Pays for a string of this length; refuses one longer than any prompt may be."""
        if chars > self.max_chars:
            raise LimitError(
                f"the chat template makes a text of {chars} characters, more than the limit of "
                f"{self.max_chars}"
            )
        self.spend(chars)

    def value(self, value: Any) -> Any:
        """Pays for a value an operation has returned, and returns it."""
        if isinstance(value, str):
            self.text(len(value))
        elif isinstance(value, list | tuple | dict):
            self.spend(self.weigh(value))
        elif isinstance(value, Iterator):
            return self._metered(value)
        elif isinstance(value, int):
            self.int_bits(value.bit_length())
        else:
            self.step()
        return value

    def int_bits(self, bits: int) -> None:
        """Pays for an integer of so many bits."""
        if bits > _MAX_INT_BITS:
            raise LimitError(
                f"the chat template makes an integer of {bits} bits, more than the limit of "
                f"{_MAX_INT_BITS}"
            )
        self.step()

    def _metered(self, items: Iterator[Any]) -> Iterator[Any]:
        for item in items:
            self.step()
            yield item

    def weigh(self, value: Any, depth: int = 0) -> int:
        """About the length of ``str(value)``, counting what is referenced twice twice.

        This is what makes ``a = [a, a]`` repeated forty times a bounded value: printing, comparing
        or hashing it walks every path.
        """
        if isinstance(value, str):
            return 32 + len(value)
        if not isinstance(value, list | tuple | dict):
            return 8 + (value.bit_length() // 3 if isinstance(value, int) else 8)
        if (known := self._weights.get(id(value))) is not None:
            return known[1]
        if depth > _MAX_DEPTH:
            raise LimitError(f"a value in the chat template is nested more than {_MAX_DEPTH} deep")
        self.step(1 + len(value) // 16)
        total = 16
        for item in value:
            total += self.weigh(item, depth + 1)
            if isinstance(value, dict):
                total += self.weigh(value[item], depth + 1)
        self._weights[id(value)] = (value, total)
        return total


#: The budget of the rendering this thread is in.
CURRENT: ContextVar[Budget] = ContextVar("treadle_template_budget")
