"""Text to token ids and back, for any Hugging Face model directory."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from treadle.errors import TokenizerError
from treadle.tokenization.backend import Backend
from treadle.tokenization.hf_backend import HfBackend, guarded
from treadle.tokenization.settings import TokenizerSettings, load_settings
from treadle.tokenization.spm_backend import SpmBackend


class Tokenizer:
    """A model's tokenizer; see :meth:`from_pretrained`. Safe to use from several threads.

    Encoding agrees with transformers' ``AutoTokenizer``. Decoding does too, except for bytes that
    are no UTF-8: there each maximal ill-formed part becomes one U+FFFD and its well-formed
    neighbours stay readable, so that text already streamed never has to be taken back.
    """

    def __init__(self, backend: Backend, settings: TokenizerSettings) -> None:
        self._backend = backend
        self._settings = settings
        self.bos_token_id = self._named_id("bos", settings.model_bos_id)
        eos_id = self._named_id("eos", next(iter(settings.model_eos_ids), None))
        self.eos_token_id = eos_id
        self.unk_token_id = self._named_id("unk", None)
        self.pad_token_id = self._named_id("pad", None)
        more = [backend.piece_to_id(content) for content in settings.extra_eos]
        if "eos_token" not in settings.named:
            more += [i for i in settings.model_eos_ids if backend.id_to_piece(i) is not None]
        #: The ids that end an answer, as far as the tokenizer's own files tell.
        self.eos_token_ids: tuple[int, ...] = tuple(
            dict.fromkeys(i for i in [eos_id, *more] if i is not None)
        )
        # A model's embedding is often padded beyond the vocabulary: such ids are valid and empty.
        self._id_limit = max(backend.vocab_size, settings.model_vocab_size)

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Loads ``tokenizer.json``, else ``tokenizer.model`` (sentencepiece), from a directory.

        Raises :class:`TokenizerError` or :class:`ConfigError` naming the file that is missing or
        damaged.
        """
        directory = Path(path)
        if not directory.is_dir():
            raise TokenizerError(f"{directory}: not a directory, expected a model directory")
        fast, slow = directory / "tokenizer.json", directory / "tokenizer.model"
        if not fast.exists() and not slow.exists():
            raise TokenizerError(
                f"{directory}: no tokenizer found: looked for tokenizer.json and tokenizer.model"
            )
        settings = load_settings(directory)
        if fast.exists():
            return cls(HfBackend(fast, settings), settings)
        return cls(SpmBackend(slow, settings), settings)

    def _named_id(self, name: str, fallback: int | None) -> int | None:
        spec = self._settings.named.get(f"{name}_token")
        if spec is not None:
            return self._backend.piece_to_id(spec.content)
        if isinstance(self._backend, SpmBackend) and (own := self._backend.default_id(name)) >= 0:
            return own
        if fallback is not None and self._backend.id_to_piece(fallback) is not None:
            return fallback
        return None

    def _piece(self, token_id: int | None) -> str | None:
        return None if token_id is None else self._backend.id_to_piece(token_id)

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id, added tokens included."""
        return self._backend.vocab_size

    @property
    def bos_token(self) -> str | None:
        return self._piece(self.bos_token_id)

    @property
    def eos_token(self) -> str | None:
        return self._piece(self.eos_token_id)

    @property
    def unk_token(self) -> str | None:
        return self._piece(self.unk_token_id)

    @property
    def pad_token(self) -> str | None:
        return self._piece(self.pad_token_id)

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Spellings by name (``bos_token``, ...), as chat templates see them."""
        named = {name: spec.content for name, spec in self._settings.named.items()}
        for name, piece in (("bos_token", self.bos_token), ("eos_token", self.eos_token)):
            if piece is not None:
                named.setdefault(name, piece)
        return named

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that ``decode`` leaves out with ``skip_special_tokens``."""
        return self._backend.special_ids

    @property
    def chat_templates(self) -> dict[str, str]:
        """The model's own jinja chat templates by name (usually only ``default``)."""
        return dict(self._settings.chat_templates)

    @property
    def chat_template(self) -> str | None:
        """The template named ``default``, or the only one there is."""
        templates = self._settings.chat_templates
        if len(templates) == 1:
            return next(iter(templates.values()))
        return templates.get("default")

    @property
    def model_max_length(self) -> int | None:
        """``model_max_length`` of tokenizer_config.json; None where it sets no limit."""
        return self._settings.model_max_length

    def encode(
        self,
        text: str,
        add_bos: bool | None = None,
        parse_special: bool = True,
        continuation: bool = False,
    ) -> list[int]:
        """Token ids of ``text``.

        ``add_bos``: None adds what the model's files ask for, as transformers does; True or False
        forces. A text that starts with the BOS token's own text never gets a second one.
        ``parse_special``: False encodes the spelling of special tokens as plain text (tokens that
        tokenizer.json adds without marking them special are matched all the same).
        ``continuation``: the text follows the end of an earlier turn, so it gets neither BOS nor
        the dummy space that some sentencepiece models put in front of a text.
        """
        self._check_flags(add_bos, continuation)
        self._check_text(text)
        if continuation:
            return self._encode_continuation(text, parse_special)
        return self._with_affixes(self._encode_body(text, parse_special), add_bos)

    def encode_batch(
        self,
        texts: Sequence[str],
        add_bos: bool | None = None,
        parse_special: bool = True,
    ) -> list[list[int]]:
        """:meth:`encode` of each text, in parallel where the library can."""
        self._check_flags(add_bos, False)
        items = [texts] if isinstance(texts, str) else list(texts)
        for i, text in enumerate(items):
            self._check_text(text, f"texts[{i}]")
        bodies = guarded(
            lambda: self._backend.encode_batch(items, parse_special), "the texts cannot be encoded"
        )
        return [self._with_affixes(body, add_bos) for body in bodies]

    def _check_flags(self, add_bos: bool | None, continuation: bool) -> None:
        if add_bos and self.bos_token_id is None:
            raise TokenizerError("add_bos is True, but this tokenizer has no BOS token")
        if add_bos and continuation:
            raise TokenizerError("add_bos=True contradicts continuation=True: BOS starts a text")

    @staticmethod
    def _check_text(text: str, name: str = "text") -> None:
        if not isinstance(text, str):
            raise TokenizerError(f"{name} is a {type(text).__name__}, expected a str")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"{name} has a lone surrogate U+{ord(text[error.start]):04X} at character "
                f"{error.start}, which is no valid text"
            ) from None

    def _encode_body(self, text: str, parse_special: bool) -> list[int]:
        return guarded(
            lambda: self._backend.encode(text, parse_special), "the text cannot be encoded"
        )

    def _with_affixes(self, body: list[int], add_bos: bool | None) -> list[int]:
        bos = self.bos_token_id
        prefix = list(self._backend.prefix_ids)
        wanted = bos in prefix if add_bos is None else add_bos
        if bos is not None:
            rest = [i for i in prefix if i != bos]
            prefix = [bos, *rest] if wanted and body[:1] != [bos] else rest
        return [*prefix, *body, *self._backend.suffix_ids]

    def _encode_continuation(self, text: str, parse_special: bool) -> list[int]:
        # Encoding behind a special token shows the tokenizer the place the text will stand in.
        anchor = self.eos_token_id if self.eos_token_id is not None else self.bos_token_id
        if anchor is not None and parse_special:
            ids = self._encode_body(f"{self._piece(anchor)}{text}", parse_special)
            if ids[:1] == [anchor]:
                return ids[1:]
        return self._encode_body(text, parse_special)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids (a list, or an integer numpy array of one dimension)."""
        checked = self.check_ids(ids)
        if not self._backend.has_token_bytes:
            known = [i for i in checked if i < self._backend.vocab_size]
            return guarded(
                lambda: self._backend.decode(known, skip_special_tokens), "cannot decode the ids"
            )
        if skip_special_tokens:
            checked = [i for i in checked if i not in self._backend.special_ids]
        data = b"".join(map(self._backend.token_bytes, checked))
        for _ in range(self._backend.strip_left):
            data = data.removeprefix(b" ")
        return data.decode("utf-8", errors="replace")

    def check_ids(self, ids: Iterable[int]) -> list[int]:
        """``ids`` as a list of ints; raises TokenizerError for what is not a known token id."""
        if hasattr(ids, "tolist"):  # a numpy array, without importing numpy
            ids = ids.tolist()
        values: list[int] = [ids] if isinstance(ids, int) else list(ids)
        for position, value in enumerate(values):
            if type(value) is not int:
                value = self._as_int(value, position)
                values[position] = value
            if not 0 <= value < self._id_limit:
                raise TokenizerError(
                    f"token id {value} at position {position} is out of range: expected 0 to "
                    f"{self._id_limit - 1}"
                )
        return values

    @staticmethod
    def _as_int(value: Any, position: int) -> int:
        try:
            return operator.index(value)
        except TypeError:
            raise TokenizerError(
                f"token id at position {position} is {value!r}, expected an integer"
            ) from None

    def id_to_piece(self, token_id: int) -> str:
        """The vocabulary's spelling of a token ('' for a padding id without one)."""
        return self._backend.id_to_piece(self.check_ids([token_id])[0]) or ""

    def piece_to_id(self, piece: str) -> int | None:
        """The id of a vocabulary entry; None where there is none with exactly this spelling."""
        return self._backend.piece_to_id(piece)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token contributes to a text, before any dummy leading space is dropped.

        They may be a part of a UTF-8 character. Special tokens give their own spelling.
        """
        return self._backend.token_bytes(self.check_ids([token_id])[0])

    def token_bytes_unchecked(self, token_id: int) -> bytes:
        """:meth:`token_bytes` of an id that :meth:`check_ids` has passed."""
        return self._backend.token_bytes(token_id)

    @property
    def has_token_bytes(self) -> bool:
        """False for the rare tokenizers in which a token's text depends on its neighbours."""
        return self._backend.has_token_bytes

    @property
    def strip_left(self) -> int:
        """How many leading spaces ``decode`` drops from a text (the dummy prefix)."""
        return self._backend.strip_left
