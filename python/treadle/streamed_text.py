"""The text of a sequence as it comes, and which of its tokens may be shown."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

from treadle.detokenizer import StreamDetokenizer
from treadle.stop_words import StopWords

if TYPE_CHECKING:
    from treadle.sampling import ResolvedConfig
    from treadle.tokenizer import Tokenizer


class StreamedText:
    """Detokenises, finds stop words, and withholds tokens while their text may belong to one."""

    def __init__(
        self, config: ResolvedConfig, tokenizer: Tokenizer, context: Iterable[int] = ()
    ) -> None:
        """``context``: the tokens before the text when it continues theirs."""
        self._detokenizer = StreamDetokenizer(
            tokenizer, config.skip_special_tokens, prompt_ids=context
        )
        self._stops = StopWords(config.stop_texts) if config.stop_texts else None
        self._barred = config.min_new_tokens  # no stop word ends within these tokens
        self._made = 0  # characters of text so far, and how many of them were released
        self._released = 0
        self._withheld: deque[tuple[int, int | None]] = deque()  # (id, where its text ends)
        #: Whether a stop word was met, and how many tokens came in until then.
        self.stopped = False
        self.consumed = 0

    def push(self, ids: list[int]) -> tuple[list[int], str]:
        """The ids and the text that may now be shown. What follows a stop word is ignored."""
        if self._stops is None:
            self.consumed += len(ids)
            return ids, self._detokenizer.push(ids)
        text = "".join(self._push_one(token) for token in ids if not self.stopped)
        return self._release(), text

    def _push_one(self, token: int) -> str:
        assert self._stops is not None
        self.consumed += 1
        piece = self._detokenizer.push([token])
        self._made += len(piece)
        # A token without text (half a character, a special token) goes with the next that has some.
        self._withheld.append((token, self._made if piece else None))
        if self.consumed <= self._barred:
            shown = piece
        else:
            shown, self.stopped = self._stops.feed(piece)
        self._released += len(shown)
        return shown

    def _release(self) -> list[int]:
        """Ids whose text, and that of all ids before them, has been released."""
        count = 0
        for position, (_, end) in enumerate(self._withheld, start=1):
            if end is not None:
                if end > self._released:
                    break
                count = position
        return [self._withheld.popleft()[0] for _ in range(count)]

    def finish(self) -> tuple[list[int], str]:
        """What is still withheld, at an end that no stop word made."""
        text = self._detokenizer.flush()
        if self._stops is not None:
            shown, self.stopped = self._stops.feed(text)
            if self.stopped:
                self._released += len(shown)
                return self._release(), shown
            text = shown + self._stops.flush()
        ids = [token for token, _ in self._withheld]
        self._withheld.clear()
        return ids, text
