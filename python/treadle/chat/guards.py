"""Size checks made *before* an operation whose result could be far larger than its operands.

Also the lists of what a template may call: the methods of built-in types are allowed by name, since
some (``encode('idna')``, ``int.to_bytes``) are slow or large out of proportion and no chat template
needs them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

from treadle.chat.budget import Budget, LimitError

_MAX_WIDTH = 4096  # of one formatted field
_MAX_STRIP_CHARS = 4096
_MAX_SEARCH_WORK = 10**8
_MAX_INDENT = 32
_NUMBER = re.compile(r"\d+")


def _refuse(what: str, value: Any, limit: Any) -> LimitError:
    shown = repr(value)
    return LimitError(
        f"{what} {shown if len(shown) <= 40 else shown[:37] + '...'} in the chat template is more "
        f"than the limit of {limit}"
    )


def check_count(budget: Budget, count: Any) -> None:
    """A width or a number of items: results grow with it."""
    if isinstance(count, str):
        budget.text(len(count))
    elif isinstance(count, int | float) and abs(count) > budget.max_chars:
        raise _refuse("the number", count, budget.max_chars)


def check_format(budget: Budget, template: str, arguments: Iterable[Any]) -> None:
    """``template % arguments``: widths in the template, and large arguments used many times."""
    fields = template.count("%")
    if fields and "*" in template:
        raise LimitError("'*' widths in a % format of the chat template are not supported")
    check_spec(template)
    largest = max((budget.weigh(item) for item in arguments), default=0)
    budget.text(len(template) + fields * largest)


def check_spec(spec: str) -> None:
    """Refuses a format specification with an absurd width or precision."""
    for match in _NUMBER.finditer(spec):
        if len(match[0]) > 8 or int(match[0]) > _MAX_WIDTH:
            raise _refuse("the format width", match[0], _MAX_WIDTH)


def percent(budget: Budget, left: str, right: Any) -> str:
    if isinstance(right, tuple):
        arguments: Iterable[Any] = right
    else:
        arguments = right.values() if isinstance(right, dict) else (right,)
    check_format(budget, left, arguments)
    return str.__mod__(left, right)


def multiply(budget: Budget, left: Any, right: Any) -> Any:
    for items, count in ((left, right), (right, left)):
        if isinstance(items, str) and isinstance(count, int):
            budget.text(len(items) * max(count, 0))
        elif isinstance(items, list | tuple) and isinstance(count, int):
            budget.check(items, max(count, 0))
    if isinstance(left, int) and isinstance(right, int):
        budget.int_bits(left.bit_length() + right.bit_length())
    return left * right


def power(budget: Budget, left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int) and right > 0:
        budget.int_bits(left.bit_length() * right)
    return left**right


def add(budget: Budget, left: Any, right: Any) -> Any:
    if isinstance(left, str) and isinstance(right, str):
        budget.text(len(left) + len(right))
    elif isinstance(left, list | tuple) and isinstance(right, list | tuple):
        budget.spend(8 * (len(left) + len(right)))
    return left + right


def join(budget: Budget, separator: str, items: Iterable[Any]) -> str:
    strings = list(islice(items, budget.max_chars + 1))
    chars = sum(len(s) for s in strings if isinstance(s, str))
    budget.text(chars + len(separator) * max(len(strings) - 1, 0))
    return separator.join(strings)


def replace(budget: Budget, text: str, old: str, new: str, count: int | None = None) -> str:
    limit = -1 if count is None else count
    found = text.count(old)
    if limit >= 0:
        found = min(found, limit)
    budget.text(len(text) + found * max(len(new) - len(old), 0))
    return text.replace(old, new, limit)


def to_json(
    budget: Budget,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The ``tojson`` of transformers: plain JSON, without HTML escapes."""
    width = len(indent) if isinstance(indent, str) else indent
    if width is not None and width > _MAX_INDENT:
        raise _refuse("the tojson indent", indent, _MAX_INDENT)
    if separators is not None and any(len(item) > _MAX_INDENT for item in separators):
        raise _refuse("a tojson separator", separators, _MAX_INDENT)
    budget.check(value)
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    if indent is None:
        return encoder.encode(value)
    chunks = []
    for chunk in encoder.iterencode(value):
        budget.spend(len(chunk))
        chunks.append(chunk)
    return "".join(chunks)


def _width(name: str) -> Callable[..., str]:
    def guarded(budget: Budget, text: str, width: Any, *args: Any) -> str:
        check_count(budget, width)
        return getattr(text, name)(width, *args)  # type: ignore[no-any-return]

    return guarded


def _strip(name: str) -> Callable[..., str]:
    def guarded(budget: Budget, text: str, chars: Any = None) -> str:
        if isinstance(chars, str) and len(chars) > _MAX_STRIP_CHARS:
            raise _refuse("the number of characters to strip", len(chars), _MAX_STRIP_CHARS)
        return getattr(text, name)(chars)  # type: ignore[no-any-return]

    return guarded


def _search_from_right(name: str) -> Callable[..., Any]:
    # Searching backwards takes time proportional to the product of the lengths.
    def guarded(budget: Budget, text: str, *args: Any, **kwargs: Any) -> Any:
        for needle in (*args[:1], kwargs.get("sep")):
            if isinstance(needle, str) and len(needle) * len(text) > _MAX_SEARCH_WORK:
                raise _refuse("the search work", len(needle) * len(text), _MAX_SEARCH_WORK)
        return getattr(text, name)(*args, **kwargs)

    return guarded


def _names(text: str) -> list[str]:
    return text.split()


#: Methods of strings: None where the result is never larger than the operands.
STR_METHODS: Mapping[str, Callable[..., Any] | None] = {
    **dict.fromkeys(
        _names(
            "capitalize casefold count endswith find format format_map index isalnum isalpha "
            "isascii isdecimal isdigit isidentifier islower isnumeric isprintable isspace istitle "
            "isupper lower partition removeprefix removesuffix split splitlines startswith "
            "swapcase title upper"
        )
    ),
    **{name: _width(name) for name in ("center", "ljust", "rjust", "zfill")},
    **{name: _strip(name) for name in ("strip", "lstrip", "rstrip")},
    **{name: _search_from_right(name) for name in ("rfind", "rindex", "rsplit", "rpartition")},
    "join": join,
    "replace": replace,
}
#: Methods of the other built-in types.
OTHER_METHODS = frozenset(
    _names("bit_length conjugate copy count get index is_integer items keys values")
)
