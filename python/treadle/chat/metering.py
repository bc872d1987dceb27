"""Rewrites a parsed template so that every operation reports to the budget.

Loops, macro calls, output, concatenation, comparison and literals compile to plain Python that no
environment hook sees; here each gets a call to one of three internal filters. They take the
context, which keeps jinja's optimiser from running them while compiling.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.visitor import NodeTransformer

from treadle.chat.budget import CURRENT, WALK

_TEXT, _VALUE, _COMPARED, _STEP = (
    f"treadle_{name}" for name in ("text", "value", "compared", "step")
)


@pass_context
def _text(_context: Any, value: Any) -> str:
    """Converts to text what is about to be written or concatenated."""
    text = str(value)
    CURRENT.get().text(len(text))
    return text


@pass_context
def _value(_context: Any, value: Any) -> Any:
    return CURRENT.get().value(value)


@pass_context
def _compared(_context: Any, value: Any) -> Any:
    CURRENT.get().step(WALK)
    return value


@pass_context
def _step(_context: Any, chars: int) -> str:
    """Pays for one pass through a body that writes this many literal characters."""
    CURRENT.get().spend(chars)
    return ""


INTERNAL_FILTERS = {_TEXT: _text, _VALUE: _value, _COMPARED: _compared, _STEP: _step}
_BODIES = (nodes.For, nodes.Macro, nodes.CallBlock, nodes.Block)


def _call(name: str, node: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _literal_chars(body: list[nodes.Node]) -> int:
    """Literal text in a body, leaving out inner bodies, which pay for themselves."""
    total = 0
    stack = list(body)
    while stack:
        node = stack.pop()
        if isinstance(node, nodes.TemplateData):
            total += len(node.data)
        elif not isinstance(node, _BODIES):
            stack.extend(node.iter_child_nodes())
    return total


class Meter(NodeTransformer):
    """Apply with ``visit`` to a freshly parsed template."""

    def __init__(self) -> None:
        self._visitors: dict[type[nodes.Node], Callable[[Any], nodes.Node]] = {
            nodes.Output: self._output,
            nodes.Concat: self._concat,
            nodes.Compare: self._compare,
            nodes.List: self._built,
            nodes.Dict: self._built,
            nodes.Tuple: self._tuple,
            nodes.Getitem: self._getitem,
            nodes.For: self._for,
            nodes.Macro: self._with_body,
            nodes.CallBlock: self._with_body,
            nodes.Block: self._with_body,
        }

    def get_visitor(self, node: nodes.Node) -> Any:
        return self._visitors.get(type(node))

    def _output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [
            child if isinstance(child, nodes.TemplateData) else _call(_TEXT, child)
            for child in node.nodes
        ]
        return node

    def _concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [_call(_TEXT, child) for child in node.nodes]
        return node

    def _compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        return _call(_COMPARED, node)

    def _built(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        return _call(_VALUE, node)

    def _tuple(self, node: nodes.Tuple) -> nodes.Node:
        # A tuple that is assigned to (``for a, b in ...``) builds nothing.
        self.generic_visit(node)
        return _call(_VALUE, node) if node.ctx == "load" else node

    def _getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _call(_VALUE, node) if isinstance(node.arg, nodes.Slice) else node

    def _with_body(self, node: Any) -> Any:
        chars = nodes.Const(_literal_chars(node.body), lineno=node.lineno)
        self.generic_visit(node)
        toll = nodes.Output([_call(_STEP, chars)], lineno=node.lineno)
        node.body = [toll, *node.body]
        return node

    def _for(self, node: nodes.For) -> nodes.Node:
        self._with_body(node)
        if node.test is not None:  # runs for the items it drops, too
            zero = nodes.Const(0, lineno=node.lineno)
            toll = nodes.Not(_call(_STEP, zero), lineno=node.lineno)
            node.test = nodes.And(toll, node.test, lineno=node.lineno)
        return node
