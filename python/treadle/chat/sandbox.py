"""The jinja environment chat templates run in: transformers' dialect, sandboxed and metered."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter

from treadle.chat import guards
from treadle.chat.budget import CURRENT, WALK, LimitError
from treadle.chat.filters import metered, metered_filters
from treadle.chat.globals import GLOBALS
from treadle.chat.metering import INTERNAL_FILTERS, Meter

_MAX_NODES = 10_000


class _Generation(Extension):
    """``{% generation %}`` marks an answer for training; here its body is simply rendered."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Formatter(SandboxedFormatter):
    """``str.format`` with bounded widths and a bounded result."""

    def format_field(self, value: Any, format_spec: str) -> str:
        guards.check_spec(format_spec)
        text = str(super().format_field(value, format_spec))
        CURRENT.get().text(len(text))
        return text


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Compiles and runs templates; every operation reports to :data:`budget.CURRENT`."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
            cache_size=0,
        )
        tests: dict[str, Any] = dict(self.tests)
        self.tests.update({name: metered(test) for name, test in tests.items()})
        self.filters = {**metered_filters(self.filters), **INTERNAL_FILTERS}
        for name in ("cycler", "lipsum"):  # no prompt needs them
            self.globals.pop(name, None)
        self.globals.update(GLOBALS)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        count = 0
        stack: list[nodes.Node] = [tree]
        while stack:
            stack.extend(stack.pop().iter_child_nodes())
            count += 1
            if count > _MAX_NODES:
                raise LimitError(
                    f"the chat template has more than {_MAX_NODES} expressions and statements"
                )
        Meter().visit(tree)
        tree.set_environment(self)
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = CURRENT.get()
        if operator == "%" and isinstance(left, str):
            return budget.value(guards.percent(budget, left, right))
        guarded = {"+": guards.add, "*": guards.multiply, "**": guards.power}.get(operator)
        if guarded is None:
            return super().call_binop(context, operator, left, right)
        return budget.value(guarded(budget, left, right))

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        budget = CURRENT.get()
        budget.step(WALK)
        budget.check(args)  # a macro finds them in ``varargs`` and ``kwargs``
        budget.check(kwargs)
        guarded = self._guard_of(obj)
        if guarded is not None:
            return budget.value(guarded(budget, obj.__self__, *args, **kwargs))
        return budget.value(super().call(context, obj, *args, **kwargs))

    def _guard_of(self, obj: Any) -> Callable[..., Any] | None:
        """The bounded form of a method; None where a plain call does. Refuses unknown methods."""
        if not isinstance(obj, types.BuiltinFunctionType | types.MethodType):
            return None
        owner, name = obj.__self__, obj.__name__
        if isinstance(owner, str):
            if name in guards.STR_METHODS:
                return guards.STR_METHODS[name]
        elif not isinstance(obj, types.BuiltinFunctionType) or name in guards.OTHER_METHODS:
            return None
        raise SecurityError(f"{type(owner).__name__}.{name} cannot be called in a chat template")

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Replaces jinja's own wrapper around ``str.format``, which has no size limits."""
        is_method = isinstance(value, types.MethodType | types.BuiltinMethodType)
        if not is_method or value.__name__ not in ("format", "format_map"):
            return None
        text = value.__self__
        if not isinstance(text, str):
            return None
        formatter = _Formatter(self)

        def bounded_format(*args: Any, **kwargs: Any) -> str:
            if value.__name__ == "format_map":
                return str(formatter.vformat(str(text), (), args[0]))
            return str(formatter.vformat(str(text), args, kwargs))

        return bounded_format
