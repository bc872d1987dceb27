"""Vocabulary of a tokenizer.model, through the ``sentencepiece`` library.

Sentencepiece knows nothing of the tokens that a Hugging Face directory adds beside its model, so
they are cut out of the text first and sentencepiece encodes what lies between them, the way the
Llama tokenizer of transformers does in its ``legacy`` form (each stretch gets its own dummy prefix)
or, where tokenizer_config.json says ``"legacy": false``, in its newer form (one prefix at the start
of the text).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from treadle.errors import TokenizerError
from treadle.tokenization.files import MAX_TOKENIZER_BYTES, read_bytes
from treadle.tokenization.hf_backend import guarded
from treadle.tokenization.pieces import SPACE_MARK, MarkedPieces
from treadle.tokenization.settings import AddedTokenSpec, TokenizerSettings

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

# ModelProto { normalizer_spec (3) { add_dummy_prefix (3): false } }. Protocol buffers merge a
# repeated occurrence of a message, so appending this to a model overrides that one field.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"
# Chat markers that were trained in as user-defined symbols; never part of an answer's text.
_MARKER = re.compile(r"<\|[^|<>]+\|>")


class SpmBackend:
    """See :class:`treadle.tokenization.backend.Backend`."""

    has_token_bytes = True

    def __init__(self, path: Path, settings: TokenizerSettings) -> None:
        from sentencepiece import SentencePieceProcessor

        data = read_bytes(path, MAX_TOKENIZER_BYTES)
        if not data:
            raise TokenizerError(f"{path}: not a sentencepiece model: the file is empty")
        self._sp: SentencePieceProcessor = guarded(
            lambda: SentencePieceProcessor(model_proto=data), f"{path}: not a sentencepiece model"
        )
        size = self._sp.get_piece_size()
        if size <= 0:
            raise TokenizerError(f"{path}: not a sentencepiece model: it has no pieces")
        # The same model without dummy prefix: for text that continues other text.
        self._sp_plain: SentencePieceProcessor = guarded(
            lambda: SentencePieceProcessor(model_proto=data + _NO_DUMMY_PREFIX),
            f"{path}: not a sentencepiece model",
        )
        pieces = [str(piece) for piece in self._sp.id_to_piece(list(range(size)))]
        self._pieces: list[str | None] = [*pieces]
        self._ids = {piece: i for i, piece in enumerate(pieces)}
        self._legacy = settings.legacy
        has_dummy_prefix = str(self._sp.normalize("a")).startswith(SPACE_MARK)
        self._add_prefix = settings.add_prefix_space and not settings.legacy
        self.strip_left = int(has_dummy_prefix if settings.legacy else self._add_prefix)

        self._added = self._collect_added(settings, pieces)
        self.vocab_size = max(size, max(self._added, default=-1) + 1)
        self._pieces += [None] * (self.vocab_size - size)
        for token_id, spec in self._added.items():
            self._pieces[token_id] = spec.content
            self._ids[spec.content] = token_id
        self.special_ids = frozenset(i for i, spec in self._added.items() if spec.special)
        self._by_content = {spec.content: i for i, spec in self._added.items()}
        self._splitter = _alternation(list(self._by_content))

        self.prefix_ids, self.suffix_ids = self._default_affixes(settings)
        self._unk_text = settings.named.get("unk_token", AddedTokenSpec("<unk>")).content
        self._unk_length = len(self._sp_plain.encode(self._unk_text))
        self._text_pieces = MarkedPieces([(SPACE_MARK, " ")], byte_fallback=False, strip_left=0)
        self._byte_pieces = MarkedPieces([], byte_fallback=True, strip_left=0)
        self._bytes: dict[int, bytes] = {}

    def _collect_added(
        self, settings: TokenizerSettings, pieces: list[str]
    ) -> dict[int, AddedTokenSpec]:
        """Every token that is matched before sentencepiece sees the text, by id."""
        added: dict[int, AddedTokenSpec] = {}
        for token_id, piece in enumerate(pieces):
            if self._sp.is_control(token_id) or _MARKER.fullmatch(piece):
                added[token_id] = AddedTokenSpec(piece)
        unk = self._sp.unk_id()
        if unk >= 0:
            added[unk] = AddedTokenSpec(pieces[unk])
        added.update(settings.added)  # explicit ids rename placeholders such as [UNUSED_TOKEN_145]
        known = {spec.content: token_id for token_id, spec in added.items()}
        named = [*settings.named.values(), *settings.extra_special]
        named += [AddedTokenSpec(content) for content in settings.extra_eos]
        for spec in named:
            token_id = known.get(spec.content, self._ids.get(spec.content, -1))
            if token_id < 0:
                token_id = max(len(pieces), max(added, default=-1) + 1)
            known[spec.content] = token_id
            if not (token_id in added and added[token_id].special):
                added[token_id] = spec
        return added

    def _default_affixes(
        self, settings: TokenizerSettings
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        def id_of(name: str, fallback: int) -> tuple[int, ...]:
            spec = settings.named.get(name)
            token_id = self._by_content.get(spec.content, -1) if spec else fallback
            return (token_id,) if token_id >= 0 else ()

        # Llama's tokenizer adds BOS and no EOS unless its configuration says otherwise.
        wants_bos = settings.add_bos_token is not False
        bos = id_of("bos_token", self._sp.bos_id()) if wants_bos else ()
        eos = id_of("eos_token", self._sp.eos_id()) if settings.add_eos_token else ()
        return bos, eos

    # Model-side names of the special tokens, for directories that name none.
    def default_id(self, name: str) -> int:
        """The model's own id of ``bos``, ``eos``, ``unk`` or ``pad``; -1 where it has none."""
        ids = {
            "bos": self._sp.bos_id,
            "eos": self._sp.eos_id,
            "unk": self._sp.unk_id,
            "pad": self._sp.pad_id,
        }
        return int(ids[name]())

    def encode(self, text: str, parse_special: bool) -> list[int]:
        if not text:
            return []
        first_prefix = False
        if not self._legacy:
            text = text.replace(SPACE_MARK, " ")
            if self._add_prefix:
                text, first_prefix = SPACE_MARK + text, True
        if not parse_special:
            return self._encode_literally(text)
        parts = self._split(text)
        ids: list[int] = []
        for i, part in enumerate(parts):
            if isinstance(part, int):
                ids.append(part)
            elif first_prefix and i == 0 and part == SPACE_MARK and len(parts) > 1:
                continue  # the text starts with an added token, which takes no prefix
            elif part:
                ids.extend(self._encode_stretch(part))
        return ids

    def encode_batch(self, texts: list[str], parse_special: bool) -> list[list[int]]:
        return [self.encode(text, parse_special) for text in texts]

    def _split(self, text: str) -> list[str | int]:
        """Cuts the added tokens out: stretches of text, and ids in between."""
        if self._splitter is None:
            return [text]
        parts: list[str | int] = []
        start = 0
        swallow = False
        for match in self._splitter.finditer(text):
            spec = self._added[self._by_content[match[0]]]
            left, right = text[: match.start()][-1:], text[match.end() : match.end() + 1]
            if spec.single_word and (left not in ("", " ") or right not in ("", " ")):
                continue
            stretch = text[start : match.start()]
            if swallow:
                stretch = stretch.lstrip()
            parts.append(stretch.rstrip() if spec.lstrip else stretch)
            parts.append(self._by_content[match[0]])
            start, swallow = match.end(), spec.rstrip
        tail = text[start:]
        parts.append(tail.lstrip() if swallow else tail)
        return [part for part in parts if part != ""]

    def _encode_stretch(self, text: str) -> list[int]:
        if self._legacy:
            return list(self._sp.encode(text))
        if not text.startswith((SPACE_MARK, " ")):
            return list(self._sp_plain.encode(text))
        # Sentencepiece may drop a leading space; behind another token it does not.
        ids = list(self._sp_plain.encode(self._unk_text + text))
        return ids[self._unk_length :]

    def _encode_literally(self, text: str) -> list[int]:
        """Encodes text in which no token may be recognised by its spelling.

        User-defined symbols are matched inside sentencepiece itself; cutting each behind its first
        character keeps that from happening.
        """
        ids: list[int] = []
        start = 0
        matches = self._splitter.finditer(text) if self._splitter else iter(())
        for end in [*(match.start() + 1 for match in matches), len(text)]:
            if end <= start:
                continue
            stretch = text[start:end]
            if start == 0:
                ids.extend(self._encode_stretch(stretch))
            else:
                ids.extend(self._sp_plain.encode(stretch))
            start = end
        return ids

    def id_to_piece(self, token_id: int) -> str | None:
        return self._pieces[token_id] if 0 <= token_id < self.vocab_size else None

    def piece_to_id(self, piece: str) -> int | None:
        return self._ids.get(piece)

    def token_bytes(self, token_id: int) -> bytes:
        data = self._bytes.get(token_id)
        if data is None:
            data = self._bytes[token_id] = self._compute_bytes(token_id)
        return data

    def _compute_bytes(self, token_id: int) -> bytes:
        if (spec := self._added.get(token_id)) is not None:
            return spec.content.encode("utf-8")
        piece = self.id_to_piece(token_id)
        if piece is None:
            return b""
        if self._sp.is_byte(token_id):
            return self._byte_pieces.to_bytes(piece)
        return self._text_pieces.to_bytes(piece)

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        raise AssertionError("sentencepiece tokens have bytes; the caller concatenates them")


def _alternation(contents: list[str]) -> re.Pattern[str] | None:
    """Matches any of the strings, the longest first."""
    ordered = sorted((content for content in contents if content), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None
