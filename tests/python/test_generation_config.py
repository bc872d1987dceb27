"""GenerationConfig: validation, the rules of sampling, and what becomes of it for a model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from treadle import Engine, GenerationConfig
from treadle.bad_words import BadWords, contains
from treadle.errors import ConfigError, InvalidArgumentError, TokenizerError
from treadle.sampling import ConfigResolver, ResolvedConfig, load_model_defaults
from treadle.tokenizer import Tokenizer


@pytest.mark.parametrize(
    ("field", "value", "right"),
    [
        ("max_new_tokens", 0, "from 1 to"),
        ("max_new_tokens", -5, "from 1 to"),
        ("max_new_tokens", 2**31, "from 1 to 2147483647"),
        ("max_new_tokens", True, "must be an integer"),
        ("max_new_tokens", 3.0, "must be an integer"),
        ("max_new_tokens", "3", "must be an integer"),
        ("min_new_tokens", -1, "from 0 to"),
        ("do_sample", 1, "True or False"),
        ("temperature", math.nan, "finite"),
        ("temperature", math.inf, "finite"),
        ("temperature", -0.1, "at least 0"),
        ("temperature", "hot", "must be a number"),
        ("temperature", True, "must be a number"),
        ("temperature", 10**400, "finite"),
        ("top_k", -1, "0 keeps all"),
        ("top_k", 2.5, "must be an integer"),
        ("top_p", 0, "above 0"),
        ("top_p", 1.01, "at most 1"),
        ("top_p", math.nan, "finite"),
        ("min_p", -0.01, "from 0 to 1"),
        ("min_p", 1.5, "from 0 to 1"),
        ("repetition_penalty", 0.0, "above 0"),
        ("presence_penalty", math.nan, "finite"),
        ("frequency_penalty", [1], "must be a number"),
        ("random_seed", -1, "from 0 to"),
        ("random_seed", 2**64, "from 0 to"),
        ("ignore_eos", "no", "True or False"),
        ("logprobs", 65, "from 0 to 64"),
        ("prompt_logprobs", -1, "from 0 to 64"),
        ("n", 0, "from 1 to"),
        ("skip_special_tokens", None.__class__, "True or False"),
    ],
)
def test_refuses_wrong_values_by_name(field: str, value: Any, right: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        GenerationConfig(**{field: value})
    message = str(caught.value)
    assert message.startswith(f"{field} is ")
    assert right in message


def test_a_changed_config_is_checked_again(engine: Engine) -> None:
    config = GenerationConfig()
    config.top_p = 7
    with pytest.raises(InvalidArgumentError, match="top_p is 7"):
        engine._resolver.resolve(config, {})


def test_refuses_contradictions() -> None:
    with pytest.raises(InvalidArgumentError, match="do_sample is True and temperature is 0"):
        GenerationConfig(do_sample=True, temperature=0)
    with pytest.raises(InvalidArgumentError, match="min_new_tokens is 9.*max_new_tokens.* is 8"):
        GenerationConfig(min_new_tokens=9, max_new_tokens=8)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("temprature", "temperature"),
        ("request_output_len", "max_new_tokens"),
        ("stop", "stop_words"),
    ],
)
def test_an_unknown_option_is_refused_with_the_closest(name: str, meant: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"no option '{name}'.*{meant}"):
        GenerationConfig().replace(**{name: 1})


def test_numpy_scalars_are_numbers() -> None:
    config = GenerationConfig(max_new_tokens=np.int64(3), temperature=np.float32(0.5))
    assert config.max_new_tokens == 3


def resolver(defaults: GenerationConfig, tokenizer: Tokenizer | None = None) -> ConfigResolver:
    def get() -> Tokenizer:
        if tokenizer is None:
            raise TokenizerError("no tokenizer found")
        return tokenizer

    return ConfigResolver(defaults, 4096, get, list)


def resolve(defaults: dict[str, Any], **options: Any) -> ResolvedConfig:
    return resolver(GenerationConfig(**defaults)).resolve(GenerationConfig(**options), {})


@pytest.mark.parametrize(
    ("model", "caller", "temperature"),
    [
        ({}, {}, 0.0),
        ({"temperature": 0.7}, {}, 0.0),  # a file without do_sample means greedy
        ({"do_sample": True}, {}, 1.0),
        ({"do_sample": True, "temperature": 0.7}, {}, 0.7),
        ({"do_sample": True, "temperature": 0.7}, {"do_sample": False}, 0.0),
        ({"do_sample": True, "temperature": 0.7}, {"temperature": 0.2}, 0.2),
        ({"do_sample": False, "temperature": 0.7}, {"do_sample": True}, 0.7),
        ({"do_sample": False, "temperature": 0.7}, {"top_p": 0.9}, 0.7),
        ({"do_sample": False}, {"top_k": 5}, 1.0),
        ({}, {"temperature": 0}, 0.0),
        ({}, {"do_sample": False, "temperature": 0.9, "top_p": 0.5}, 0.0),
        ({"temperature": 0}, {"do_sample": True}, 1.0),
    ],
)
def test_who_decides_about_sampling(
    model: dict[str, Any], caller: dict[str, Any], temperature: float
) -> None:
    assert resolve(model, **caller).sampling.temperature == pytest.approx(temperature)


def test_greedy_ignores_the_shape_of_the_distribution() -> None:
    params = resolve({}, do_sample=False, top_k=3, top_p=0.5, min_p=0.1).sampling
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (0.0, 0, 1.0, 0.0)


def test_the_models_file_gives_defaults(tmp_path: Path) -> None:
    values = {"do_sample": True, "top_k": 20, "max_new_tokens": 33, "temperature": None}
    (tmp_path / "generation_config.json").write_text(json.dumps(values))
    params = resolver(load_model_defaults(tmp_path)).resolve(None, {}).sampling
    assert (params.top_k, params.max_new_tokens, params.temperature) == (20, 33, 1.0)
    assert load_model_defaults(tmp_path / "nowhere") == GenerationConfig()


def test_a_wrong_value_in_the_models_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"top_p": 3}')
    with pytest.raises(ConfigError, match=r"generation_config\.json: top_p is 3"):
        load_model_defaults(tmp_path)


def test_the_callers_limit_beats_the_models_minimum() -> None:
    params = resolve({"min_new_tokens": 10}, max_new_tokens=4).sampling
    assert (params.min_new_tokens, params.max_new_tokens) == (4, 4)
    with pytest.raises(InvalidArgumentError, match="min_new_tokens is 50.* is 40"):
        resolve({"max_new_tokens": 40}, min_new_tokens=50)


def test_words_are_sorted_by_kind(engine: Engine) -> None:
    config = GenerationConfig(stop_words=["river", 5, [7, 8], "<|im_end|>"], stop_token_ids=[9])
    resolved = resolver(GenerationConfig(), engine.tokenizer).resolve(config, {})
    assert resolved.stop_texts == ("river",)
    assert resolved.sampling.stop_words == [[5], [7, 8]]
    assert resolved.sampling.stop_token_ids == [9, 4]  # <|im_end|> has no text of its own


def test_bad_words_are_barred_with_and_without_a_space(engine: Engine) -> None:
    config = GenerationConfig(bad_words=["blue", [3, 4]])
    words = resolver(GenerationConfig(), engine.tokenizer).resolve(config, {}).sampling.bad_words
    assert [3, 4] in words
    texts = {engine.tokenizer.decode(word) for word in words}
    assert {"blue", " blue"} <= texts


def test_bad_words_inside_longer_tokens(engine: Engine) -> None:
    words = BadWords(engine.tokenizer).sequences("杭州")
    texts = {engine.tokenizer.decode(word) for word in words}
    assert {"杭州", "浙江的省会是杭州"} <= texts


@pytest.mark.parametrize(
    ("piece", "word", "inside"),
    [
        (" cat", "cat", True),
        ("catalog", "cat", False),
        ("concat", "cat", False),
        ("concat a cat.", "cat", True),
        ("是杭州的", "杭州", True),
        ("éclat", "lat", False),
        ("", "cat", False),
        ("(cat)", "cat", True),
    ],
)
def test_whole_words_only(piece: str, word: str, inside: bool) -> None:
    assert contains(piece, word) is inside


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop_words": [""]}, r"stop_words\[0\] is ''"),
        ({"stop_words": 3}, "stop_words is 3"),
        ({"stop_words": [[]]}, r"stop_words\[0\] is \[\]"),
        ({"stop_words": [4096]}, r"stop_words\[0\] is 4096.*0 to 4095"),
        ({"bad_words": [[1, -1]]}, r"bad_words\[0\]\[1\] is -1"),
        ({"bad_words": [None]}, r"bad_words\[0\] is None"),
        ({"stop_token_ids": [5000]}, r"stop_token_ids\[0\] is 5000.*0 to 4095"),
        ({"stop_token_ids": "ab"}, "stop_token_ids is 'ab'"),
        ({"stop_token_ids": [True]}, r"stop_token_ids\[0\] is True"),
        ({"logit_bias": {4096: 1.0}}, "logit_bias is 4096"),
        ({"logit_bias": {1: math.nan}}, "logit_bias of token 1 is nan"),
        ({"logit_bias": {1: math.inf}}, "logit_bias of token 1 is inf"),
        ({"logit_bias": [1]}, "logit_bias is .*map"),
        ({"logit_bias": {"a": 1}}, "logit_bias is 'a'"),
    ],
)
def test_wrong_words_and_biases_are_named(
    engine: Engine, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        engine._resolver.resolve(GenerationConfig(**options), {})


def test_a_bias_may_bar_a_token() -> None:
    assert resolve({}, logit_bias={3: -math.inf}).sampling.logit_bias == [(3, -math.inf)]


def test_text_words_need_a_tokenizer() -> None:
    with pytest.raises(TokenizerError):
        resolve({}, stop_words=["river"])
    assert resolve({}, stop_words=[[1, 2]]).sampling.stop_words == [[1, 2]]
