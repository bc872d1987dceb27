"""Token sequences that bar a word."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from treadle.tokenizer import Tokenizer

#: Below this, scripts put spaces between words; from here on (Chinese, Japanese, ...) they do not.
_FIRST_UNSPACED = 0x2E80


class BadWords:
    """Finds for a text the token sequences a model might write it with. Thread safe.

    They are the word's own tokens (at the start of a text, behind a space, in the middle of a line)
    and every single token that has the whole word inside: "浙江的省会是杭州" for "杭州", but not
    "catalog" for "cat". Other ways to cut the word into tokens stay possible, though no model
    writes them by itself.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._texts: list[str] | None = None

    def sequences(self, word: str) -> list[list[int]]:
        """Without duplicates; never empty sequences."""
        text = word.strip() or word
        found = [ids for ids in self._spellings(text) if ids]
        found += [
            [token] for token, piece in enumerate(self._vocabulary()) if contains(piece, text)
        ]
        unique = {tuple(ids): ids for ids in found}
        return list(unique.values())

    def _spellings(self, text: str) -> list[list[int]]:
        tokenizer = self._tokenizer
        no_bos = None if tokenizer.bos_token_id is None else False
        variants = [
            variant
            for spelling in (text, " " + text)
            for variant in (
                tokenizer.encode(spelling, add_bos=no_bos),
                tokenizer.encode(spelling, continuation=True),
            )
        ]
        # What a tokenizer adds on its own (an end token) must not become part of the word.
        return [ids for ids in variants if tokenizer.decode(ids, False).strip() == text.strip()]

    def _vocabulary(self) -> list[str]:
        with self._lock:
            if self._texts is None:
                tokenizer = self._tokenizer
                self._texts = [
                    ""
                    if token in tokenizer.special_ids
                    else tokenizer.token_bytes(token).decode("utf-8", errors="replace")
                    for token in range(tokenizer.vocab_size)
                ]
            return self._texts


def contains(piece: str, word: str) -> bool:
    """Whether ``piece`` holds ``word`` as a word of its own, not as a part of a longer one."""
    start = piece.find(word)
    while start >= 0:
        end = start + len(word)
        if not _joined(piece[start - 1 : start], word[0]) and not _joined(
            word[-1], piece[end:][:1]
        ):
            return True
        start = piece.find(word, start + 1)
    return False


def _joined(left: str, right: str) -> bool:
    """Whether two neighbouring characters belong to one word."""
    return all(
        char.isalnum() and ord(char) < _FIRST_UNSPACED for char in (left or " ", right or " ")
    )
