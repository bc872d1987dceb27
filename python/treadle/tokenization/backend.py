"""What :class:`treadle.tokenizer.Tokenizer` asks of the library that does the work."""

from __future__ import annotations

from typing import Protocol


class Backend(Protocol):
    """A loaded vocabulary. Ids are non-negative; methods may be called from several threads."""

    #: One more than the largest id.
    vocab_size: int
    #: Ids that decoding leaves out on request.
    special_ids: frozenset[int]
    #: Ids that encoding puts before and after a text by default.
    prefix_ids: tuple[int, ...]
    suffix_ids: tuple[int, ...]
    #: Spaces dropped from the start of a decoded text.
    strip_left: int
    #: False where a token's text depends on its neighbours: then :meth:`decode` does the work.
    has_token_bytes: bool

    def encode(self, text: str, parse_special: bool) -> list[int]:
        """Ids of the text alone, without prefix and suffix."""

    def encode_batch(self, texts: list[str], parse_special: bool) -> list[list[int]]:
        """:meth:`encode` of each text."""

    def id_to_piece(self, token_id: int) -> str | None:
        """The vocabulary's spelling of a token; None where the id is unused."""

    def piece_to_id(self, piece: str) -> int | None:
        """The id with exactly this spelling."""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token contributes to a text (empty for an unused id)."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        """Text of the ids by the library itself; used only without ``has_token_bytes``."""
