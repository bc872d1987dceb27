"""Follows one continuation of one prompt from the engine's outputs to the caller's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from treadle.errors import TreadleError, from_code
from treadle.outputs import (
    FinishReason,
    PositionLogprobs,
    SequenceOutput,
    TokenIds,
    TokenLogprob,
    Usage,
)
from treadle.streamed_text import StreamedText

if TYPE_CHECKING:
    from treadle import _engine
    from treadle.sampling import ResolvedConfig


class TokenBuffer:
    """Token ids that grow at the end. Views given out stay as they were."""

    def __init__(self) -> None:
        self._data = np.empty(64, dtype=np.int32)
        self._size = 0

    def extend(self, ids: TokenIds | list[int]) -> None:
        needed = self._size + len(ids)
        if needed > len(self._data):
            grown = np.empty(max(needed, 2 * len(self._data)), dtype=np.int32)
            grown[: self._size] = self._data[: self._size]
            self._data = grown  # the old array lives on in the views
        self._data[self._size : needed] = ids
        self._size = needed

    def view(self) -> TokenIds:
        view = self._data[: self._size]
        view.flags.writeable = False
        return view


class SequenceState:
    """Takes engine outputs with :meth:`feed`, gives :class:`SequenceOutput` with :meth:`take`."""

    def __init__(
        self,
        config: ResolvedConfig,
        text: StreamedText | None = None,
        *,
        index: int = 0,
        continuation: int = 0,
    ) -> None:
        """``text`` is needed when ``config.needs_text``."""
        self.finish_reason: FinishReason | None = None
        #: Tokens generated until a stop word was met in the text; None unless one was.
        self.tokens_to_stop: int | None = None
        self.usage = Usage()
        self._index = index
        self._continuation = continuation
        self._error: TreadleError | None = None
        self._text = text
        self._pieces: list[str] | None = [] if config.return_text else None
        self._tokens = TokenBuffer()
        self._logprobs: list[PositionLogprobs] | None = (
            [] if config.sampling.logprobs >= 0 else None
        )
        self._prompt_logprobs: list[PositionLogprobs] | None = None
        self._new_tokens = 0
        self._new_text = ""

    def feed(self, output: _engine.Output) -> bool:
        """True when a caller can see a difference."""
        if self.finish_reason is not None:
            return False  # was under way when a stop word was met
        self.usage = Usage(*output.usage)
        if self._logprobs is not None:
            self._logprobs += map(_position, output.logprobs)
        if prompt_logprobs := output.prompt_logprobs:
            self._prompt_logprobs = [_position(entry) for entry in prompt_logprobs]
        changed = self._take_tokens(output.token_ids)
        if self.finish_reason is None and output.finish_reason:
            self._finish(output)
        return changed or self.finish_reason is not None

    def _take_tokens(self, ids: TokenIds) -> bool:
        if self._text is None:
            return self._show(ids, "")
        changed = self._show(*self._text.push(ids.tolist()))
        if self._text.stopped:
            self._stop_at_word(self._text.consumed)
        return changed

    def _finish(self, output: _engine.Output) -> None:
        if self._text is not None:
            self._show(*self._text.finish())
        self.finish_reason = cast(FinishReason, output.finish_reason)
        if self.finish_reason == "error":
            self._error = from_code(output.error, output.error_message)

    def _stop_at_word(self, consumed: int) -> None:
        self.finish_reason = "stop"
        self.tokens_to_stop = consumed
        self.usage = self.usage._replace(output_tokens=consumed)

    def fail(self, error: TreadleError) -> None:
        """Ends the sequence without the engine: it refused the request."""
        self.finish_reason = "error"
        self._error = error

    def _show(self, ids: TokenIds | list[int], text: str) -> bool:
        self._tokens.extend(ids)
        self._new_tokens += len(ids)
        if text and self._pieces is not None:
            self._pieces.append(text)
            self._new_text += text
        return len(ids) > 0 or (bool(text) and self._pieces is not None)

    def take(self) -> SequenceOutput:
        """The sequence so far; "new" is what came since the last call."""
        output = SequenceOutput(
            token_ids=self._tokens.view(),
            new_tokens=self._new_tokens,
            index=self._index,
            continuation=self._continuation,
            text_pieces=self._pieces,
            new_text=self._new_text,
            logprobs=self._logprobs,
            prompt_logprobs=self._prompt_logprobs,
            finish_reason=self.finish_reason,
            error=self._error,
            usage=self.usage,
        )
        self._new_tokens, self._new_text = 0, ""
        return output


def _position(entry: tuple[Any, Sequence[Any]]) -> PositionLogprobs:
    chosen, top = entry
    return PositionLogprobs(TokenLogprob(*chosen), tuple(TokenLogprob(*pair) for pair in top))
