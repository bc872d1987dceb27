"""How much a chat template may compute, and the books of one rendering.

A template comes with the model, so it is as untrusted as the weights. Everything it does is paid
from a budget that grows with the messages it is given: steps, CPU seconds of this thread, the size
of one value and the total of all values. Every value a template builds is bounded, so every single
operation on values is too, and the clock is looked at between operations.
"""

from __future__ import annotations

import time
from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from contextvars import ContextVar
from typing import Any

from treadle.errors import ChatTemplateError

_BASE_CHARS = 1 << 20  # what a template may write besides four times its input
_WEIGHT_FACTOR = 4  # size of one list or dict, in units of the output limit
_TOTAL_FACTOR = 16  # all values together, in units of the output limit
_MAX_STEPS = 1_000_000
_MAX_SECONDS = 0.5
_MAX_INT_BITS = 8192
_MAX_DEPTH = 100
_CLOCK_EVERY = 256  # cheap operations between two looks at the clock
_CHARS_PER_STEP = 256
#: Cost of an operation that may walk through a whole value, such as a comparison.
WALK = 32
_CONTAINERS = (list, tuple, dict, KeysView, ValuesView, ItemsView)


class LimitError(ChatTemplateError):
    """A template ran into one of the limits."""

    code = "template_limit"


class Budget:
    """The books of one rendering; see :data:`CURRENT`."""

    def __init__(self, input_weight: int = 0) -> None:
        self.max_chars = _BASE_CHARS + 4 * input_weight
        self._max_weight = _WEIGHT_FACTOR * self.max_chars
        self._max_total = _TOTAL_FACTOR * self.max_chars
        self._total = 0
        self._steps = 0
        self._clock = 0
        scale = 1 + input_weight / _BASE_CHARS
        self._max_steps = int(_MAX_STEPS * scale)
        self._max_seconds = _MAX_SECONDS * scale
        # This thread's CPU time: a busy machine must not fail an honest template.
        self._start = time.thread_time()
        # (value, weight, depth) of containers by id; kept alive, so that an id stays theirs.
        self._known: dict[int, tuple[Any, int, int]] = {}

    def step(self, cost: int = 1) -> None:
        """Pays for one operation. ``cost``: how much sooner the clock is looked at for it."""
        self._steps += 1
        self._clock += cost
        if self._clock < _CLOCK_EVERY:
            return
        self._clock = 0
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
        """Pays for memory: a value of this size is about to be made, or has just been made."""
        self._total += chars
        if chars > self._max_total or self._total > self._max_total:
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
        elif isinstance(value, _CONTAINERS):
            self.check(value)
            self.spend(16 + 8 * len(value))
        elif isinstance(value, Iterator):
            return self._metered(value)
        elif isinstance(value, int):
            self.int_bits(value.bit_length())
        else:
            self.step()
        return value

    def check(self, value: Any, times: int = 1) -> None:
        """Refuses a value that is too large or too deep to be worked with."""
        weight = self.weigh(value) * times
        if weight > self._max_weight:
            raise LimitError(
                f"the chat template makes a value of size {weight}, more than the limit of "
                f"{self._max_weight}"
            )
        self.step(1 + weight // _CHARS_PER_STEP)

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
            if isinstance(item, _CONTAINERS):
                self.check(item)
            yield item

    def weigh(self, value: Any) -> int:
        """About the length of ``str(value)``, counting what is referenced twice twice.

        This is what makes ``a = [a, a]`` repeated forty times a bounded value: printing, comparing
        or hashing it walks every path.
        """
        return self._weigh(value, 0)[0]

    def _weigh(self, value: Any, above: int) -> tuple[int, int]:
        """Weight and depth of a value that stands ``above`` levels deep."""
        if isinstance(value, str):
            return 32 + len(value), 0
        if isinstance(value, int):
            return 8 + value.bit_length() // 3, 0
        if not isinstance(value, _CONTAINERS):
            return 16, 0
        if (known := self._known.get(id(value))) is not None:
            weight, depth = known[1:]
        else:
            weight, depth = 16, 0
            if above <= _MAX_DEPTH:
                self.step(1 + len(value) // 16)
                items = list(value)
                if isinstance(value, dict):
                    items += value.values()
                for item in items:
                    item_weight, item_depth = self._weigh(item, above + 1)
                    weight += item_weight
                    depth = max(depth, item_depth + 1)
                self._known[id(value)] = (value, weight, depth)
        if above + depth > _MAX_DEPTH:
            raise LimitError(f"a value in the chat template is nested more than {_MAX_DEPTH} deep")
        return weight, depth


#: The budget of the rendering this thread is in.
CURRENT: ContextVar[Budget] = ContextVar("treadle_template_budget")
