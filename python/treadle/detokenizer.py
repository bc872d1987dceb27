"""Text from a stream of tokens, piece by piece, without ever taking a character back."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import Protocol

from treadle.tokenizer import Tokenizer


class _Stream(Protocol):
    def push(self, ids: list[int]) -> str: ...
    def flush(self) -> str: ...


class StreamDetokenizer:
    """Turns the tokens of one answer into text as they come.

    The pieces returned by :meth:`push` and the final :meth:`flush`, put together, equal
    ``tokenizer.decode`` of all the ids, whatever the chunking; after a prompt they equal what the
    ids add to the prompt's text. A UTF-8 character that is spread over several tokens is held back
    until it is whole. The work is linear in the number of tokens.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        skip_special_tokens: bool = True,
        prompt_ids: Iterable[int] = (),
    ) -> None:
        """``prompt_ids``: the tokens before the first pushed one. With them a leading-space piece
        gives its space; without, the first piece starts a text."""
        self._tokenizer = tokenizer
        prompt = tokenizer.check_ids(prompt_ids)
        stream = _ByteStream if tokenizer.has_token_bytes else _WindowStream
        self._stream: _Stream = stream(tokenizer, skip_special_tokens, prompt)

    def push(self, new_ids: Iterable[int]) -> str:
        """The text that became certain with these tokens; may be empty."""
        return self._stream.push(self._tokenizer.check_ids(new_ids))

    def flush(self) -> str:
        """What is still held back, at the end of the answer: half a character becomes U+FFFD."""
        return self._stream.flush()


class _ByteStream:
    """For tokens with bytes of their own: an incremental UTF-8 decoder holds at most 3 bytes."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool, prompt: list[int]) -> None:
        self._bytes = tokenizer.token_bytes_unchecked
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._strip = tokenizer.strip_left
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._prime(prompt)

    def _prime(self, prompt: list[int]) -> None:
        # The dummy space is dropped only at the very start, so a short head decides about it; and
        # what a decoder holds depends on the last 3 bytes only, so a short tail decides about that.
        for token_id in prompt:
            if not self._strip:
                break
            self._drop_prefix(self._visible([token_id]))
        tail = b""
        for token_id in reversed(prompt):
            tail = self._visible([token_id]) + tail
            if len(tail) >= 4:
                break
        self._utf8.decode(tail)

    def _visible(self, ids: list[int]) -> bytes:
        return b"".join(self._bytes(i) for i in ids if i not in self._skipped)

    def _drop_prefix(self, data: bytes) -> bytes:
        while self._strip and data:
            if not data.startswith(b" "):
                self._strip = 0
                break
            data = data[1:]
            self._strip -= 1
        return data

    def push(self, ids: list[int]) -> str:
        return self._utf8.decode(self._drop_prefix(self._visible(ids)))

    def flush(self) -> str:
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text


class _WindowStream:
    """For the other decoders: compares the text of a small window with and without the new token.

    The window starts at the last tokens that gave text, so that a decoder which looks at neighbours
    sees them, and it never holds more than ``2 * _MAX_PENDING`` tokens.
    """

    _MAX_PENDING = 16

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool, prompt: list[int]) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._ids: list[int] = []  # [context | pending]
        for start in range(len(prompt) - 1, max(len(prompt) - self._MAX_PENDING, 0) - 1, -1):
            self._ids = prompt[start:]
            if len(self._ids) >= 4 and self._text(self._ids):
                break
        self._context = len(self._ids)

    def _text(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip)

    def push(self, ids: list[int]) -> str:
        # One at a time, so that the result does not depend on the chunking.
        return "".join(self._push_one(token_id) for token_id in ids)

    def _push_one(self, token_id: int) -> str:
        self._ids.append(token_id)
        pending = len(self._ids) - self._context
        text = self._new_text()
        if not text or (text.endswith("\ufffd") and pending < self._MAX_PENDING):
            if pending >= self._MAX_PENDING:  # tokens without text: nothing to remember
                del self._ids[self._context :]
            return ""
        self._advance()
        return text

    def _new_text(self) -> str:
        before = self._text(self._ids[: self._context])
        return self._text(self._ids)[len(before) :]

    def _advance(self) -> None:
        del self._ids[: self._context]
        self._context = len(self._ids)

    def flush(self) -> str:
        text = self._new_text()
        if text:
            self._advance()
        return text
