"""Token ids of texts of any length, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from treadle.tokenizer import Tokenizer

#: Texts up to this many characters are encoded in one piece.
PIECE_CHARS = 1 << 20


def encode_file(
    tokenizer: Tokenizer, file: TextIO, piece_chars: int = PIECE_CHARS
) -> Iterator[list[int]]:
    """Ids of an open text file, piece after piece: BOS and the like stand where ``encode`` puts
    them for the text as a whole."""
    suffix = list(tokenizer._backend.suffix_ids)
    first = True
    for piece, last in _pieces(file, piece_chars):
        ids = _without(suffix, tokenizer.encode(piece)) if first else _encode_rest(tokenizer, piece)
        yield ids + suffix if last else ids
        first = False


def _without(suffix: list[int], ids: list[int]) -> list[int]:
    return ids[: len(ids) - len(suffix)]


def _encode_rest(tokenizer: Tokenizer, piece: str) -> list[int]:
    """Behind a line break, as in the text; some sentencepiece models put a space behind a special
    token, too."""
    suffix = list(tokenizer._backend.suffix_ids)
    head = _without(suffix, tokenizer.encode("\n"))
    ids = _without(suffix, tokenizer.encode("\n" + piece))
    if ids[: len(head)] == head:
        return ids[len(head) :]
    return tokenizer.encode(piece, continuation=True)


def _pieces(file: TextIO, size: int) -> Iterator[tuple[str, bool]]:
    """Pieces of at most five times ``size`` characters, and whether it is the last one."""
    rest = file.read(size)
    while block := file.read(size):
        if cut := _cut(rest, force=len(rest) >= 4 * size):
            yield rest[:cut], False
        rest = rest[cut:] + block
    if rest:
        yield rest, True


def _cut(text: str, force: bool) -> int:
    """Where ``text`` can be cut: before a line that begins with something visible, because no
    tokenizer in use joins a line break with what follows it. 0 when there is no such place; with
    ``force`` a word's end, or the text's."""
    cut = len(text)
    while (cut := text.rfind("\n", 0, cut)) >= 0:
        if cut + 1 < len(text) and not text[cut + 1].isspace():
            return cut + 1
    if not force:
        return 0
    return max(text.rfind(" "), 0) or len(text)
