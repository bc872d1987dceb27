"""Filters of the chat template environment: own ones where jinja's have no bound."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jinja2 import TemplateRuntimeError, pass_context
from jinja2.filters import FILTERS
from jinja2.runtime import Context
from jinja2.sandbox import SandboxedEnvironment

from treadle.chat import guards
from treadle.chat.budget import CURRENT, WALK, LimitError

# Not useful in a prompt, and with costs that are hard to bound.
_REMOVED = frozenset(("pprint", "random", "striptags", "urlize", "wordwrap", "xmlattr"))
# Their results grow with a number they are given.
_COUNTED = frozenset(("batch", "center", "indent", "slice", "truncate"))


@pass_context
def _sum(context: Context, values: Any, attribute: Any = None, start: Any = 0) -> Any:
    environment = context.environment
    assert isinstance(environment, SandboxedEnvironment)
    total = start
    for item in values:
        if attribute is not None:
            item = environment.getitem(item, attribute)
        total = environment.call_binop(context, "+", total, item)
    return total


@pass_context
def _join(context: Context, values: Any, d: Any = "", attribute: Any = None) -> str:
    budget = CURRENT.get()

    def strings() -> Iterator[str]:
        for item in values:
            if attribute is not None:
                item = context.environment.getitem(item, attribute)
            text = str(item)
            budget.text(len(text))
            yield text

    return guards.join(budget, str(d), strings())


def _replace(text: Any, old: Any, new: Any, count: int | None = None) -> str:
    return guards.replace(CURRENT.get(), str(text), str(old), str(new), count)


def _format(text: Any, *args: Any, **kwargs: Any) -> str:
    if args and kwargs:
        raise TemplateRuntimeError("format takes positional or keyword arguments, not both")
    return guards.percent(CURRENT.get(), str(text), kwargs or args)


def _tojson(value: Any, *args: Any, **kwargs: Any) -> str:
    return guards.to_json(CURRENT.get(), value, *args, **kwargs)


def _trim(text: Any, chars: str | None = None) -> Any:
    strip = guards.STR_METHODS["strip"]
    assert strip is not None
    return strip(CURRENT.get(), str(text), chars)


def _indent(text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> Any:
    lines = str(text).count("\n") + 1
    CURRENT.get().text(len(str(text)) + lines * (width if isinstance(width, int) else len(width)))
    return FILTERS["indent"](str(text), width, first, blank)


def _round(value: Any, precision: int = 0, method: str = "common") -> Any:
    if abs(precision) > 100:
        raise LimitError(f"the chat template rounds to {precision} digits, expected -100 to 100")
    return FILTERS["round"](value, precision, method)


_OWN: dict[str, Callable[..., Any]] = {
    "format": _format,
    "indent": _indent,
    "join": _join,
    "replace": _replace,
    "round": _round,
    "sum": _sum,
    "tojson": _tojson,
    "trim": _trim,
}


def metered(function: Callable[..., Any], counted: bool = False) -> Callable[..., Any]:
    """Wraps a filter or test so that its numbers are checked and its result is paid for."""

    @functools.wraps(function)  # keeps jinja's "pass the context" mark
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        budget = CURRENT.get()
        budget.step(WALK)
        if counted:
            for argument in (*args[1:], *kwargs.values()):
                guards.check_count(budget, argument)
        return budget.value(function(*args, **kwargs))

    return wrapper


def metered_filters(filters: Mapping[str, Any]) -> dict[str, Callable[..., Any]]:
    """``filters`` without the removed ones, with the own ones, all paying for their results."""
    chosen = {name: f for name, f in filters.items() if name not in _REMOVED}
    chosen.update(_OWN)
    return {name: metered(f, name in _COUNTED) for name, f in chosen.items()}
