"""Checks of parameters. Each failure names the field, the value and what would be right."""

from __future__ import annotations

import difflib
import math
import numbers
import operator
from collections.abc import Iterable

from treadle.errors import InvalidArgumentError

MAX_INT32 = 2**31 - 1
MAX_UINT64 = 2**64 - 1


def refuse(field: str, value: object, right: str) -> InvalidArgumentError:
    """The error to raise: ``field is value: right``."""
    return InvalidArgumentError(f"{field} is {value!r}: {right}")


def integer(field: str, value: object, low: int, high: int = MAX_INT32, note: str = "") -> int:
    """``value`` as an int in [low, high]. Takes numpy integers; refuses bool and float."""
    right = f"it must be an integer from {low} to {high}{note}"
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise refuse(field, value, right)
    try:
        number = operator.index(value)
    except TypeError:  # an array of more than one element
        raise refuse(field, value, right) from None
    if not low <= number <= high:
        raise refuse(field, number, right)
    return number


def number(field: str, value: object) -> float:
    """``value`` as a finite float. Takes integers and numpy scalars; refuses bool, NaN and inf."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise refuse(field, value, "it must be a number")
    try:
        result = float(value)
    except OverflowError:
        raise refuse(field, value, "it must be a finite number") from None
    if not math.isfinite(result):
        raise refuse(field, result, "it must be a finite number")
    return result


def flag(field: str, value: object) -> bool:
    """``value``, which must be a bool: 0, 1 and "false" are usually mistakes."""
    if not isinstance(value, bool):
        raise refuse(field, value, "it must be True or False")
    return value


def choice(field: str, value: object, choices: Iterable[object]) -> None:
    """Refuses what is none of ``choices``; 8.0 is not 8."""
    options = list(choices)
    if isinstance(value, (bool, float)) or value not in options:
        raise refuse(field, value, f"it must be one of {', '.join(map(repr, options))}")


def known_names(
    kind: str, given: Iterable[str], known: Iterable[str], renamed: dict[str, str] | None = None
) -> None:
    """Refuses names that are not known, with the closest one that is."""
    names = list(known)
    for name in given:
        if name in names:
            continue
        hint = (renamed or {}).get(name)
        close = [hint] if hint else difflib.get_close_matches(name, names, n=1)
        tail = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(sorted(names))}"
        raise InvalidArgumentError(f"{kind} has no option {name!r}: {tail}")
