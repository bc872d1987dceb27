"""What text a token stands for, as bytes.

For the two decoders that language models use (byte-level BPE, and sentencepiece-style pieces with
byte fallback) a token always contributes the same bytes, wherever it stands. Decoding is then
"concatenate the bytes, read them as UTF-8", which makes streamed decoding exact and linear.
"""

from __future__ import annotations

import re
from typing import Any

SPACE_MARK = "\u2581"  # sentencepiece's visible space
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_level_table() -> dict[str, int]:
    """GPT-2's printable stand-ins: maps a character to the byte it stands for.

    Printable Latin-1 characters stand for themselves; the other 68 bytes take the code points from
    256 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if chr(byte) not in table)
    table.update({chr(256 + i): byte for i, byte in enumerate(list(others))})
    return table


class ByteLevelPieces:
    """Pieces of a byte-level BPE (GPT-2, llama 3, qwen)."""

    strip_left = 0

    def __init__(self) -> None:
        self._table = byte_level_table()

    def to_bytes(self, piece: str) -> bytes:
        table = self._table
        try:
            return bytes([table[char] for char in piece])
        except KeyError:  # not made of stand-ins, so it is literal text
            return piece.encode("utf-8")


class MarkedPieces:
    """Sentencepiece-style pieces: a mark for the space and, optionally, ``<0xAB>`` for bytes.

    ``strip_left`` spaces are dropped from the start of a text: the dummy prefix that encoding adds.
    """

    def __init__(
        self, replacements: list[tuple[str, str]], byte_fallback: bool, strip_left: int
    ) -> None:
        self._replacements = replacements
        self._byte_fallback = byte_fallback
        self.strip_left = strip_left

    def to_bytes(self, piece: str) -> bytes:
        if self._byte_fallback and (match := _BYTE_PIECE.fullmatch(piece)):
            return bytes([int(match[1], 16)])
        for old, new in self._replacements:
            piece = piece.replace(old, new)
        return piece.encode("utf-8")


def pieces_of_decoder(decoder: dict[str, Any] | None) -> ByteLevelPieces | MarkedPieces | None:
    """Recognises the decoder of a tokenizer.json; None where tokens have no bytes of their own.

    Accepts ``ByteLevel`` and ``[Replace (literal)..., ByteFallback?, Fuse?, Strip(left)?]``, where
    Strip follows Fuse, so that it applies to the text and not to each token.
    """
    if decoder is None:
        return None
    steps = decoder["decoders"] if decoder.get("type") == "Sequence" else [decoder]
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return ByteLevelPieces()
    replacements: list[tuple[str, str]] = []
    byte_fallback = False
    while kinds and kinds[0] == "Replace":
        pattern = steps[0].get("pattern", {}).get("String")
        if not pattern:
            return None
        replacements.append((pattern, steps[0].get("content", "")))
        kinds, steps = kinds[1:], steps[1:]
    if kinds and kinds[0] == "ByteFallback":
        byte_fallback = True
        kinds, steps = kinds[1:], steps[1:]
    strip_left = 0
    if kinds == ["Fuse", "Strip"]:
        strip = steps[1]
        if strip.get("content") != " " or strip.get("stop", 0) != 0:
            return None
        strip_left = int(strip.get("start", 0))
    elif kinds not in ([], ["Fuse"]):
        return None
    return MarkedPieces(replacements, byte_fallback, strip_left)
