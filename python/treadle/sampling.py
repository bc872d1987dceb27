"""Turns a GenerationConfig into what the engine and the text side need."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treadle import _checks as check
from treadle.bad_words import BadWords
from treadle.errors import ConfigError, InvalidArgumentError, TreadleError
from treadle.generation_config import GenerationConfig
from treadle.tokenization.files import read_json_if_exists

if TYPE_CHECKING:
    from treadle import _engine
    from treadle.tokenizer import Tokenizer

DEFAULT_MAX_NEW_TOKENS = 512

#: Fields of a model's generation_config.json that mean the same here.
_MODEL_FIELDS = (
    "max_new_tokens",
    "min_new_tokens",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
)
_SHAPES = ("temperature", "top_k", "top_p", "min_p")


@dataclass(frozen=True)
class ResolvedConfig:
    """One generation's options, complete."""

    sampling: _engine.SamplingParams
    n: int
    min_new_tokens: int
    #: Stop words to match on the text; the others are in ``sampling``.
    stop_texts: tuple[str, ...]
    return_text: bool
    skip_special_tokens: bool

    @property
    def needs_text(self) -> bool:
        return self.return_text or bool(self.stop_texts)


def load_model_defaults(directory: str | os.PathLike[str]) -> GenerationConfig:
    """What the model's generation_config.json asks for; all None without one.

    Raises ConfigError naming the file for a value that cannot be right.
    """
    path = Path(directory) / "generation_config.json"
    values = read_json_if_exists(path)
    found = {name: values[name] for name in _MODEL_FIELDS if values.get(name) is not None}
    if found.get("temperature") == 0:  # several published files say "do_sample": true beside it
        found["do_sample"] = False
    try:
        return GenerationConfig(**found)
    except TreadleError as error:
        raise ConfigError(f"{path}: {error}") from error


def split_words(field: str, words: object, vocab_size: int) -> tuple[list[str], list[list[int]]]:
    """The texts and the token id sequences among ``stop_words`` or ``bad_words``."""
    right = "it must be a str, a token id or a sequence of token ids"
    if words is None:
        return [], []
    if isinstance(words, str):
        words = [words]
    if isinstance(words, bytes | Mapping) or not hasattr(words, "__iter__"):
        raise check.refuse(field, words, "it must be a list of words")
    texts: list[str] = []
    sequences: list[list[int]] = []
    for i, word in enumerate(words):
        name = f"{field}[{i}]"
        if isinstance(word, str):
            if not word:
                raise check.refuse(name, word, "an empty word would match everywhere")
            texts.append(word)
        elif hasattr(word, "__index__") and not hasattr(word, "__len__"):
            sequences.append([check.integer(name, word, 0, vocab_size - 1)])
        elif hasattr(word, "__iter__") and not isinstance(word, bytes | Mapping):
            ids = [
                check.integer(f"{name}[{j}]", token, 0, vocab_size - 1)
                for j, token in enumerate(word)
            ]
            if not ids:
                raise check.refuse(name, word, "a word must have at least one token")
            sequences.append(ids)
        else:
            raise check.refuse(name, word, right)
    return texts, sequences


class ConfigResolver:
    """Knows one model's defaults, vocabulary and end words. Thread safe."""

    def __init__(
        self,
        defaults: GenerationConfig,
        vocab_size: int,
        tokenizer: Callable[[], Tokenizer],
        template_stop_words: Callable[[], Sequence[str]],
    ) -> None:
        """``tokenizer`` raises where the model has none; then only token ids can be used."""
        self._defaults = defaults
        self._vocab_size = vocab_size
        self._tokenizer = tokenizer
        self._template_stop_words = template_stop_words
        self._words: BadWords | None = None

    def resolve(
        self, config: GenerationConfig | None, overrides: Mapping[str, Any]
    ) -> ResolvedConfig:
        """Raises InvalidArgumentError for a value that is wrong in itself or for this model."""
        from treadle import _engine

        config = self._merge(config, overrides)
        params = _engine.SamplingParams()
        self._set_lengths(params, config)
        self._set_distribution(params, config)
        for field in ("repetition_penalty", "presence_penalty", "frequency_penalty"):
            if (value := self._value(config, field)) is not None:
                setattr(params, field, float(value))
        params.logit_bias = self._logit_bias(config.logit_bias)
        params.ignore_eos = bool(config.ignore_eos)
        params.logprobs = -1 if config.logprobs is None else config.logprobs
        params.prompt_logprobs = -1 if config.prompt_logprobs is None else config.prompt_logprobs
        params.n = config.n or 1
        params.seed = config.random_seed
        params.bad_words = self._bad_words(config)
        stop_texts = self._set_stops(params, config)
        skip = config.skip_special_tokens
        return ResolvedConfig(
            sampling=params,
            n=params.n,
            min_new_tokens=params.min_new_tokens,
            stop_texts=tuple(stop_texts),
            return_text=bool(config.return_text),
            skip_special_tokens=True if skip is None else skip,
        )

    @staticmethod
    def _merge(config: GenerationConfig | None, overrides: Mapping[str, Any]) -> GenerationConfig:
        if config is None:
            config = GenerationConfig()
        elif not isinstance(config, GenerationConfig):
            raise InvalidArgumentError(
                f"gen_config is a {type(config).__name__}: it must be a GenerationConfig"
            )
        config.validate()  # it may have been changed since it was made
        return config.replace(**overrides) if overrides else config

    def _value(self, config: GenerationConfig, field: str) -> Any:
        value = getattr(config, field)
        return getattr(self._defaults, field) if value is None else value

    def _set_lengths(self, params: _engine.SamplingParams, config: GenerationConfig) -> None:
        longest = self._value(config, "max_new_tokens") or DEFAULT_MAX_NEW_TOKENS
        shortest = self._value(config, "min_new_tokens") or 0
        if config.min_new_tokens is None:
            shortest = min(shortest, longest)  # the caller's own limit beats the model's file
        GenerationConfig.check_lengths(shortest, longest)
        params.max_new_tokens, params.min_new_tokens = longest, shortest

    def _set_distribution(self, params: _engine.SamplingParams, config: GenerationConfig) -> None:
        """The four rules in the docstring of GenerationConfig."""
        sample = config.do_sample
        if sample is None:
            given = any(getattr(config, field) is not None for field in _SHAPES)
            sample = given or bool(self._defaults.do_sample)
        temperature = self._value(config, "temperature")
        if sample and config.do_sample and temperature == 0:
            temperature = None  # the file's 0 does not contradict the caller's do_sample=True
        if not sample or temperature == 0:
            params.temperature = 0.0
            return
        params.temperature = 1.0 if temperature is None else float(temperature)
        params.top_k = self._value(config, "top_k") or 0
        params.top_p = float(self._value(config, "top_p") or 1.0)
        params.min_p = float(self._value(config, "min_p") or 0.0)

    def _logit_bias(self, bias: object) -> list[tuple[int, float]]:
        if bias is None:
            return []
        if not isinstance(bias, Mapping):
            raise check.refuse("logit_bias", bias, "it must map token ids to numbers")
        result: list[tuple[int, float]] = []
        for token, value in bias.items():
            token_id = check.integer("token id in logit_bias", token, 0, self._vocab_size - 1)
            bars = isinstance(value, float) and math.isinf(value) and value < 0
            result.append(
                (token_id, value if bars else check.number(f"logit_bias of token {token}", value))
            )
        return result

    def _bad_words(self, config: GenerationConfig) -> list[list[int]]:
        texts, sequences = split_words("bad_words", config.bad_words, self._vocab_size)
        if texts and self._words is None:
            self._words = BadWords(self._tokenizer())
        for text in texts:
            assert self._words is not None
            sequences += self._words.sequences(text)
        return sequences

    def _set_stops(self, params: _engine.SamplingParams, config: GenerationConfig) -> list[str]:
        """Sets the stop tokens and sequences; returns the words to match on the text."""
        texts, sequences = split_words("stop_words", config.stop_words, self._vocab_size)
        if not config.ignore_eos:
            texts += self._template_stop_words()
        ids = [
            check.integer(f"stop_token_ids[{i}]", token, 0, self._vocab_size - 1)
            for i, token in enumerate(self._ids("stop_token_ids", config.stop_token_ids))
        ]
        on_text: list[str] = []
        for word in texts:
            # A special token has no text of its own in the output: only its id can be seen.
            token = self._tokenizer().piece_to_id(word)
            if token is not None and token in self._tokenizer().special_ids:
                ids.append(token)
            elif word not in on_text:
                on_text.append(word)
        params.stop_token_ids = list(dict.fromkeys(ids))
        params.stop_words = sequences
        return on_text

    @staticmethod
    def _ids(field: str, value: Any) -> list[Any]:
        if value is None:
            return []
        if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__iter__"):
            raise check.refuse(field, value, "it must be a list of token ids")
        return list(value)


def merge_configs(
    config: GenerationConfig | Sequence[GenerationConfig] | None, count: int
) -> list[GenerationConfig | None]:
    """One config per sequence, from one for all or a list of them."""
    if config is None or isinstance(config, GenerationConfig):
        return [config] * count
    if isinstance(config, str | Mapping) or not isinstance(config, Sequence):
        raise InvalidArgumentError(
            f"gen_config is a {type(config).__name__}: it must be a GenerationConfig or a list of "
            "them"
        )
    if len(config) != count:
        raise InvalidArgumentError(
            f"gen_config has {len(config)} entries for {count} sequences: give one for each, or "
            "one for all"
        )
    return list(config)
