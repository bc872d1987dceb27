"""Checks OpenAI-style messages and turns them into plain data that a template may see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from treadle.errors import ChatTemplateError

#: Roles of the OpenAI API, and those that published templates use for tool results.
ROLES = (
    "system",
    "user",
    "assistant",
    "tool",
    "developer",
    "function",
    "ipython",
    "environment",
    "observation",
)
_MAX_DEPTH = 64


def _error(message: str) -> ChatTemplateError:
    return ChatTemplateError(message, code="bad_messages")


def check_messages(messages: Any) -> list[dict[str, Any]]:
    """Returns a plain copy with string contents; raises ChatTemplateError naming the message."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if isinstance(messages, Mapping) or not isinstance(messages, Sequence):
        raise _error(
            f"messages is a {type(messages).__name__}, expected a string or a list of messages"
        )
    if not messages:
        raise _error("messages is empty, expected at least one message")
    return [_check_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _check_message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise _error(
            f"{where} is a {type(message).__name__}, expected a dict with role and content"
        )
    role = message.get("role")
    if role is None:
        raise _error(f"{where} has no role, expected one of {', '.join(ROLES)}")
    if role not in ROLES:
        raise _error(f"{where}.role is {role!r}, expected one of {', '.join(ROLES)}")
    calls_tools = bool(message.get("tool_calls") or message.get("function_call"))
    if message.get("content") is None and not calls_tools:
        raise _error(f"{where} has no content, expected a string or a list of text parts")
    plain = plain_data(message, where)
    assert isinstance(plain, dict)
    plain["content"] = _content(plain.get("content"), f"{where}.content")
    return plain


def _content(content: Any, where: str) -> str | None:
    """Text parts become one text, a line each, as other servers join them."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _error(
            f"{where} is a {type(content).__name__}, expected a string or a list of text parts"
        )
    texts = []
    for i, part in enumerate(content):
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind != "text":
            raise _error(
                f"{where}[{i}] is of type {kind!r}, expected 'text': only text is supported"
            )
        if not isinstance(part.get("text"), str):
            raise _error(f"{where}[{i}].text is {part.get('text')!r}, expected a string")
        texts.append(part["text"])
    return "\n".join(texts)


def plain_data(value: Any, where: str, depth: int = 0) -> Any:
    """A copy made of JSON types only: a template must not meet objects with methods of their own.

    Raises ChatTemplateError naming the place of anything else, or of too deep nesting.
    """
    if depth > _MAX_DEPTH:
        raise _error(f"{where} is nested more than {_MAX_DEPTH} deep")
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return value if type(value) is kind else kind(value)
    if isinstance(value, Mapping):
        result = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise _error(f"{where} has the key {key!r}, expected a string")
            result[str(key)] = plain_data(item, f"{where}.{key}", depth + 1)
        return result
    if isinstance(value, list | tuple):
        return [plain_data(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    raise _error(f"{where} is a {type(value).__name__}, expected JSON data")
