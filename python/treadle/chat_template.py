"""From chat messages to the prompt text a model was trained on.

Which template is used:

1. The model's own (``chat_template.jinja``, ``chat_template.json`` or ``chat_template`` in
   tokenizer_config.json), whatever ``model_name`` says: it is what the weights were trained with.
2. Where the model has none, the built-in format that ``model_name`` names by family
   (``treadle.chat.formats``).
3. Without either, plain text: prompts pass through unchanged.

A ``model_name`` that names no known family is refused in every case, so that a misspelling does not
pass unnoticed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treadle.chat.formats import ChatFormat, find_format
from treadle.chat.messages import check_messages, plain_data
from treadle.errors import ChatTemplateError
from treadle.tokenization.files import read_json_if_exists
from treadle.tokenizer import Tokenizer

if TYPE_CHECKING:
    from treadle.chat.compiled import CompiledTemplate

Message = Mapping[str, Any]


class ChatTemplate:
    """Renders prompts for one model; see :meth:`from_pretrained`. Thread-safe.

    Templates are compiled on first use, so a model whose template is broken can still be driven
    with token ids.
    """

    def __init__(
        self,
        templates: Mapping[str, str],
        *,
        origin: str,
        special_tokens: Mapping[str, str],
        end_tokens: Sequence[str] = (),
        builtin: ChatFormat | None = None,
    ) -> None:
        """``templates``: jinja sources by name; ``default`` is used, and ``tool_use`` with tools.
        ``origin`` names them in messages. ``special_tokens``: variables such as ``bos_token``.
        ``end_tokens``: spellings of tokens that end an answer. ``builtin``: the built-in format the
        template belongs to."""
        self._templates = dict(templates)
        self._origin = origin
        self._special_tokens = dict(special_tokens)
        self._end_tokens = [token for token in end_tokens if token]
        self._builtin = builtin
        self._compiled: dict[str, CompiledTemplate] = {}
        self._markers: list[str] = []
        self._stop_words: list[str] | None = None

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        model_name: str | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> ChatTemplate:
        """Chooses the template for a model directory (the order is at the top of this file).

        ``tokenizer``: the directory's, if it is loaded already. Raises ChatTemplateError for an
        unknown ``model_name``.
        """
        builtin = find_format("base" if model_name is None else model_name)
        tokenizer = Tokenizer.from_pretrained(path) if tokenizer is None else tokenizer
        ends = [tokenizer.id_to_piece(i) for i in tokenizer.eos_token_ids]
        ends += _generation_ends(Path(path), tokenizer)
        special_tokens = tokenizer.special_tokens_map
        templates = _with_default(tokenizer.chat_templates, str(path))
        if templates:
            result = cls(
                templates,
                origin=os.fspath(path),
                special_tokens=special_tokens,
                end_tokens=ends,
            )
        else:
            special_tokens = {"bos_token": "", "eos_token": "</s>", **special_tokens}
            result = cls(
                {"default": builtin.template},
                origin=f"built-in chat format {builtin.name!r}",
                special_tokens=special_tokens,
                end_tokens=[*ends, *builtin.stop_words],
                builtin=builtin,
            )
        bos = special_tokens.get("bos_token")
        pieces = (tokenizer.id_to_piece(i) for i in tokenizer.special_ids)
        result._markers = [piece for piece in pieces if piece and piece != bos]
        return result

    @property
    def name(self) -> str | None:
        """The built-in format in use; None where the model's own template is."""
        return self._builtin.name if self._builtin else None

    @property
    def is_plain(self) -> bool:
        """True where there is no chat format: prompts are the text itself."""
        return self._builtin is not None and self._builtin.name == "base"

    @property
    def stop_words(self) -> list[str]:
        """Texts that end an answer, e.g. ``<|im_end|>``; empty for plain text."""
        if self._stop_words is None:
            words = [] if self.is_plain else [self._continue_after("treadle")[0].strip()]
            words += self._builtin.stop_words if self._builtin else ()
            self._stop_words = list(dict.fromkeys(word for word in words if word))
        return list(self._stop_words)

    def get_prompt(
        self,
        prompt: str,
        sequence_start: bool = True,
        system: str | None = None,
        previous_turn_closed: bool = True,
    ) -> str:
        """Text of one user turn, up to where the answer begins.

        ``sequence_start``: True gives the start of a conversation (BOS and system message
        included). False gives what continues a session after an answer: encode it with
        ``tokenizer.encode(text, continuation=True)``.
        ``previous_turn_closed``: whether the session's history already holds the token that ended
        the answer (``<|im_end|>``). False, as after an answer cut short, puts it first.
        """
        if not isinstance(prompt, str):
            raise ChatTemplateError(
                f"prompt is a {type(prompt).__name__}, expected a str", code="bad_messages"
            )
        if sequence_start:
            messages = [{"role": "user", "content": prompt}]
            if system is not None:
                messages.insert(0, {"role": "system", "content": system})
            return self.messages2prompt(messages)
        if system is not None:
            raise ChatTemplateError(
                "system is given with sequence_start=False: a system message can only start a "
                "conversation",
                code="bad_messages",
            )
        closing, turn = self._continue_after(prompt)
        return turn if previous_turn_closed else closing + turn

    def messages2prompt(
        self,
        messages: Sequence[Message] | str,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> str:
        """Text of OpenAI-style messages (or of one user message given as a string).

        ``tools``: JSON schemas of functions. ``kwargs``: further variables of the template, e.g.
        ``enable_thinking=False``. Raises ChatTemplateError naming the message that is wrong.
        """
        checked = check_messages(messages)
        plain_tools = None
        if tools is not None:
            if isinstance(tools, str | Mapping) or not isinstance(tools, Sequence):
                raise ChatTemplateError(
                    f"tools is a {type(tools).__name__}, expected a list of JSON schemas",
                    code="bad_messages",
                )
            plain_tools = [plain_data(tool, f"tools[{i}]") for i, tool in enumerate(tools)]
        if self._builtin is not None:
            if plain_tools:
                raise ChatTemplateError(
                    f"{self._origin} does not support tools", code="tools_unsupported"
                )
            for message in checked:
                message["content"] = message["content"] or ""
        variables = {
            "documents": None,
            **self._special_tokens,
            **{name: plain_data(value, name) for name, value in kwargs.items()},
            "messages": checked,
            "tools": plain_tools,
            "add_generation_prompt": add_generation_prompt,
        }
        name = "tool_use" if plain_tools and "tool_use" in self._templates else "default"
        return self._template(name).render(variables)

    def _template(self, name: str) -> CompiledTemplate:
        compiled = self._compiled.get(name)
        if compiled is None:
            from treadle.chat.compiled import CompiledTemplate  # imports jinja2

            compiled = CompiledTemplate(self._templates[name], self._origin)
            self._compiled[name] = compiled
        return compiled

    def _continue_after(self, prompt: str) -> tuple[str, str]:
        """What closes an answer, and the text of the next turn, from the template itself.

        A conversation with a made-up answer is rendered; what follows the answer is the closing
        text (blanks and the first end-of-turn marker) and then the new turn.
        """
        number = 0
        while (answer := f"treadleanswer{number}") in prompt:
            number += 1
        text = self.messages2prompt(
            [
                {"role": "user", "content": "treadlequestion"},
                {"role": "assistant", "content": answer},
                {"role": "user", "content": prompt},
            ]
        )
        _, found, tail = text.rpartition(answer)
        if not found:
            raise ChatTemplateError(
                f"{self._origin}: the chat template leaves earlier answers out of the prompt, so a "
                "session cannot be continued turn by turn; send the whole conversation instead",
                code="template_not_incremental",
            )
        body = tail.lstrip()
        if body == prompt.lstrip() or not body:
            return "", tail
        opening = text.removeprefix(self._special_tokens.get("bos_token", "")).lstrip()
        end = _longest_prefix(body, self._end_tokens)
        if end is None:
            end = _longest_prefix(body, self._markers)
            if end is not None and opening.startswith(end):
                end = None  # it opens a turn
        if end is None:
            return "", tail
        cut = len(tail) - len(body) + len(end)
        return tail[:cut], tail[cut:]


def _longest_prefix(text: str, candidates: Sequence[str]) -> str | None:
    return max((c for c in candidates if text.startswith(c)), key=len, default=None)


def _with_default(templates: dict[str, str], origin: str) -> dict[str, str]:
    if templates and "default" not in templates:
        if len(templates) > 1:
            raise ChatTemplateError(
                f"{origin}: chat_template has the templates {', '.join(templates)}, but none is "
                "named 'default'",
                code="template_missing",
            )
        return {"default": next(iter(templates.values()))}
    return templates


def _generation_ends(directory: Path, tokenizer: Tokenizer) -> list[str]:
    """Spellings of the eos ids in generation_config.json (its values are checked elsewhere)."""
    value = read_json_if_exists(directory / "generation_config.json").get("eos_token_id")
    ids = value if isinstance(value, list) else [value]
    valid = (i for i in ids if type(i) is int and 0 <= i < tokenizer.vocab_size)
    return [tokenizer.id_to_piece(i) for i in valid]
