"""Progress bars, on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

#: Loads that are over sooner show nothing.
LOAD_DELAY_S = 1.0


def on_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


class LoadProgress:
    """Context manager around a load; its ``callback`` gets (bytes done, bytes in all)."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._bar: Any = None

    @property
    def callback(self) -> Callable[[int, int], None] | None:
        """None where nobody would see a bar."""
        return self._update if on_terminal() else None

    def _update(self, done: int, total: int) -> None:
        if self._bar is None:
            from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]

            self._bar = tqdm(
                total=total,
                desc=self._label,
                unit="B",
                unit_scale=True,
                unit_divisor=1024,
                delay=LOAD_DELAY_S,
                leave=False,
            )
        self._bar.update(done - self._bar.n)

    def __enter__(self) -> LoadProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


class ProgressBar:
    """Context manager that counts prompts, or another ``unit``. ``total``: None when unknown.
    ``show``: None shows it on a terminal, unless there is only one to count."""

    def __init__(self, total: int | None, show: bool | None, unit: str = "prompt") -> None:
        self._bar: Any = None
        if show is None:
            show = (total is None or total > 1) and on_terminal()
        if show:
            from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]

            self._bar = tqdm(total=total, unit=unit)

    def update(self, count: int = 1) -> None:
        if self._bar is not None:
            self._bar.update(count)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
