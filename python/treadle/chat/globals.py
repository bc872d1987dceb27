"""The functions and types that chat templates find as global names."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import jinja2
from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

from treadle.chat import guards
from treadle.chat.budget import CURRENT, LimitError

_MAX_RANGE = 100_000


class RaisedByTemplate(jinja2.TemplateError):
    """The template called ``raise_exception``."""


class TemplateNamespace(Namespace):
    """Namespaces may hold each other, so printing one must not walk through them."""

    def __setitem__(self, name: str, value: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"namespace attribute {name!r} starts with an underscore")
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


class TemplateDict:
    """Stands in for the type ``dict``, whose attributes a template must not reach."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Any, value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


def raise_exception(message: Any = "") -> None:
    raise RaisedByTemplate(str(message)[:2000])


def strftime_now(pattern: str) -> str:
    guards.check_spec(pattern)
    CURRENT.get().text(64 * len(pattern))
    return datetime.now().strftime(pattern)


def bounded_range(*args: int) -> range:
    items = range(*args)
    # Not len(), which fails for what does not fit a machine word.
    if items and abs(items[-1] - items[0]) // abs(items.step) >= _MAX_RANGE:
        raise LimitError(f"a range in the chat template has more than {_MAX_RANGE} items")
    return items


GLOBALS = {
    "dict": TemplateDict(),
    "namespace": TemplateNamespace,
    "raise_exception": raise_exception,
    "range": bounded_range,
    "strftime_now": strftime_now,
}
