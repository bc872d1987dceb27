"""Vocabulary of a tokenizer.json, through the ``tokenizers`` library."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from treadle.errors import TokenizerError
from treadle.tokenization.files import MAX_TOKENIZER_BYTES, read_bytes
from treadle.tokenization.pieces import pieces_of_decoder
from treadle.tokenization.settings import MAX_TOKEN_ID, AddedTokenSpec, TokenizerSettings

if TYPE_CHECKING:
    import tokenizers

T = TypeVar("T")


def guarded(action: Callable[[], T], context: str) -> T:
    """Runs a call into a native library and turns what it raises into a TokenizerError.

    A panic in Rust arrives as a BaseException, so ``except Exception`` would let it through.
    """
    try:
        return action()
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        raise TokenizerError(f"{context}: {error or type(error).__name__}") from error


class HfBackend:
    """See :class:`treadle.tokenization.backend.Backend`."""

    def __init__(self, path: Path, settings: TokenizerSettings) -> None:
        import tokenizers

        data = read_bytes(path, MAX_TOKENIZER_BYTES)
        self._tokenizer = guarded(
            lambda: tokenizers.Tokenizer.from_buffer(data), f"{path}: not a valid tokenizer.json"
        )
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._literal: tokenizers.Tokenizer | None = None
        self._lock = threading.Lock()
        guarded(lambda: self._add_tokens(settings), f"{path}: adding the special tokens")

        largest = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        if not 0 <= largest <= MAX_TOKEN_ID:
            raise TokenizerError(
                f"{path}: the largest token id is {largest}, expected 0 to {MAX_TOKEN_ID}"
            )
        self.vocab_size = largest + 1
        added = self._tokenizer.get_added_tokens_decoder()
        self._added = {token_id: token.content for token_id, token in added.items()}
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self.prefix_ids, self.suffix_ids = self._probe_post_processor()

        self._pieces = pieces_of_decoder(self._decoder_spec())
        self.has_token_bytes = self._pieces is not None
        self.strip_left = self._pieces.strip_left if self._pieces is not None else 0
        self._bytes: dict[int, bytes] = {}

    def _add_tokens(self, settings: TokenizerSettings) -> None:
        """Adds what the other files name and tokenizer.json does not, as transformers does."""
        import tokenizers

        def token(spec: AddedTokenSpec, special: bool) -> tokenizers.AddedToken:
            return tokenizers.AddedToken(
                spec.content,
                single_word=spec.single_word,
                lstrip=spec.lstrip,
                rstrip=spec.rstrip,
                normalized=spec.normalized,
                special=special,
            )

        known = {t.content: t for t in self._tokenizer.get_added_tokens_decoder().values()}
        for _, spec in sorted(settings.added.items()):
            self._tokenizer.add_tokens([token(spec, spec.special)])
        named = [*settings.named.values(), *settings.extra_special]
        named += [AddedTokenSpec(content) for content in settings.extra_eos]
        listed = {spec.content for spec in settings.added.values()}
        for spec in named:
            if spec.content in known and spec.content not in listed:
                if known[spec.content].special:
                    continue  # tokenizer.json describes it best
                known[spec.content].special = True
                self._tokenizer.add_special_tokens([known[spec.content]])
            else:
                self._tokenizer.add_special_tokens([token(spec, True)])

    def _probe_post_processor(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids the post-processor puts before and after a text."""
        try:
            encoding = self._tokenizer.encode("a")
        except Exception:  # a vocabulary without "a" and without an unknown token
            return (), ()
        mask = list(encoding.special_tokens_mask)
        body = [i for i, is_special in enumerate(mask) if not is_special]
        if not body:
            return (), ()
        return tuple(encoding.ids[: body[0]]), tuple(encoding.ids[body[-1] + 1 :])

    def _decoder_spec(self) -> dict[str, Any] | None:
        decoder = self._tokenizer.decoder
        if decoder is None:
            return None
        spec = json.loads(decoder.__getstate__())
        return spec if isinstance(spec, dict) else None

    def _for(self, parse_special: bool) -> tokenizers.Tokenizer:
        if parse_special:
            return self._tokenizer
        with self._lock:
            if self._literal is None:
                # A second object, because the setting is the object's state, not the call's.
                literal = type(self._tokenizer).from_str(self._tokenizer.to_str())
                literal.encode_special_tokens = True
                self._literal = literal
            return self._literal

    def encode(self, text: str, parse_special: bool) -> list[int]:
        tokenizer = self._for(parse_special)
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: list[str], parse_special: bool) -> list[list[int]]:
        tokenizer = self._for(parse_special)
        encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
        return [list(encoding.ids) for encoding in encodings]

    def id_to_piece(self, token_id: int) -> str | None:
        return self._tokenizer.id_to_token(token_id)

    def piece_to_id(self, piece: str) -> int | None:
        return self._tokenizer.token_to_id(piece)

    def token_bytes(self, token_id: int) -> bytes:
        data = self._bytes.get(token_id)
        if data is None:
            data = self._bytes[token_id] = self._compute_bytes(token_id)
        return data

    def _compute_bytes(self, token_id: int) -> bytes:
        if (content := self._added.get(token_id)) is not None:
            return content.encode("utf-8")
        piece = self._tokenizer.id_to_token(token_id)
        if piece is None:
            return b""
        return self._pieces.to_bytes(piece) if self._pieces else piece.encode("utf-8")

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
