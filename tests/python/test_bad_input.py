"""Mistakes callers make: each is refused by name, and nobody else notices."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import treadle
from devices import Device
from treadle import Engine, EngineConfig, GenerationConfig
from treadle.errors import (
    InvalidArgumentError,
    NotFoundError,
    TooLongError,
    TreadleError,
    UnknownSessionError,
    UnsupportedError,
)
from treadle.generator import Generator


@pytest.fixture(autouse=True)
def others_are_untouched(engine: Engine) -> Iterator[None]:
    """Another request runs all the while and gives what it always gives."""
    options: dict[str, Any] = {"ignore_eos": True, "max_new_tokens": 30}
    generator = engine.create_instance()
    (expected,) = next(generator.stream_infer(None, [1, 5, 6], stream_output=False, **options))
    bystander = generator.stream_infer(None, [1, 5, 6], stream_output=False, **options)
    sessions = engine.stats().sessions
    yield
    (output,) = next(bystander)
    assert output.token_ids.tolist() == expected.token_ids.tolist()
    assert engine.stats().sessions == sessions
    assert engine.health()


@pytest.mark.parametrize(
    ("input_ids", "message"),
    [
        (None, "input_ids is None"),
        ([], "input_ids is empty"),
        ([[]], r"input_ids\[0\] is empty"),
        ([[1], []], r"input_ids\[1\] is empty"),
        (np.zeros((1, 0), dtype=int), r"input_ids\[0\] is empty"),
        ("hello", "input_ids is a str.*tokenizer.encode"),
        (["hello"], r"input_ids\[0\] is 'hello'"),
        (7, "input_ids is 7"),
        ([[1, 4096]], r"input_ids\[0\]\[1\] is 4096: .*0 to 4095"),
        ([1, -1], r"input_ids\[0\]\[1\] is -1"),
        ([[1], [2, 2**40]], r"input_ids\[1\]\[1\] is 1099511627776"),
        ([[1, 2**70]], r"input_ids\[0\]"),
        ([[1.5]], r"input_ids\[0\] is an array of dtype float64"),
        ([[True, False]], r"input_ids\[0\] is an array of dtype bool"),
        ([[[1]]], r"input_ids\[0\] is an array of 2 dimensions"),
        ([[1, [2]]], r"input_ids\[0\]"),
        ([[None]], r"input_ids\[0\] is an array of dtype object"),
        (np.zeros((1, 1, 1), dtype=int), "input_ids has 3 dimensions"),
    ],
)
def test_input_ids(generator: Generator, input_ids: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        generator.stream_infer(0, input_ids)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"session_id": -1}, "session_id is -1"),
        ({"session_id": 2**64}, "session_id is 18446744073709551616"),
        ({"session_id": True}, "session_id is True"),
        ({"session_id": 1.0}, "session_id is 1.0"),
        ({"session_id": "a"}, "session_id is 'a'"),
        ({"session_id": [1, 2]}, "session_id has 2 entries for 1 prompts"),
        ({"session_id": 1, "input_ids": [[1], [2]]}, "session_id is 1: there are 2 prompts"),
        ({"session_id": [3, 3], "input_ids": [[1], [2]]}, "session_id is 3: .*two prompts"),
        ({"session_id": [1, -2], "input_ids": [[1], [2]]}, r"session_id\[1\] is -2"),
        ({"sequence_start": 1}, "sequence_start is 1"),
        ({"sequence_end": None}, "sequence_end is None"),
        ({"stream_output": 0}, "stream_output is 0"),
        ({"sequence_start": False}, "sequence_start=False needs a session"),
        ({"step": 0}, "step=0 needs a session"),
        ({"session_id": 1, "step": -1}, "step is -1"),
        ({"session_id": 1, "step": 3, "sequence_start": True}, "step = 3 contradicts"),
        ({"priority": 1.5}, "priority is 1.5"),
        ({"priority": 2**31}, "priority is 2147483648"),
        ({"timeout": 0}, "timeout is 0"),
        ({"timeout": -1}, "timeout is -1"),
        ({"timeout": math.nan}, "timeout is nan"),
        ({"timeout": "soon"}, "timeout is 'soon'"),
        ({"gen_config": {}}, "gen_config is a dict"),
        ({"gen_config": [GenerationConfig()] * 2}, "gen_config has 2 entries for 1"),
        ({"gen_config": [None, 3], "input_ids": [[1], [2]]}, "gen_config is a int"),
        ({"temprature": 1.0}, "no option 'temprature'.*'temperature'"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"n": 17}, "n is 17.*max_batch_size, which is 16"),
        ({"temperature": 1e300}, "temperature is inf"),
        ({"logit_bias": dict.fromkeys(range(4096), -math.inf)}, "bar all 4096 tokens"),
    ],
)
def test_options(generator: Generator, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        generator.stream_infer(**{"session_id": None, "input_ids": [1, 5], **options})


def test_asynchronous_calls_check_the_same(generator: Generator) -> None:
    with pytest.raises(InvalidArgumentError, match=r"input_ids\[0\]\[0\] is 9999"):
        generator.async_stream_infer(None, [9999])
    with pytest.raises(UnknownSessionError):
        generator.async_stream_infer(777, [1], sequence_start=False)


def test_sessions(engine: Engine, generator: Generator) -> None:
    with pytest.raises(UnknownSessionError, match="session 777 is unknown"):
        generator.stream_infer(777, [1], sequence_start=False)
    with pytest.raises(InvalidArgumentError, match=r"step = 5 .* 0"):
        generator.stream_infer(777, [1], step=5)
    assert engine.session(777) is None
    for call in (engine.cancel, engine.end_session, engine.session):
        with pytest.raises(InvalidArgumentError, match="session_id is -3"):
            call(-3)


def test_too_long(engine: Engine, generator: Generator) -> None:
    with pytest.raises(TooLongError, match="2048 in input_ids .*session_len = 2048"):
        generator.stream_infer(778, [5] * 2048)
    assert engine.session(778) is None
    (output,) = list(generator.stream_infer(None, [5] * 2047, max_new_tokens=9))[-1]
    assert (len(output.token_ids), output.finish_reason) == (1, "length")  # the last one that fits


@pytest.mark.parametrize(
    ("field", "value", "right"),
    [
        ("device", 3, "must be a str"),
        ("dtype", "float8", "one of 'auto', 'float16'"),
        ("session_len", 0, "from 1 to"),
        ("session_len", True, "must be an integer"),
        ("max_batch_size", -1, "from 1 to"),
        ("max_batch_size", 2.0, "must be an integer"),
        ("cache_max_entry_count", 0, "fraction"),
        ("cache_max_entry_count", 1.5, "whole number of blocks"),
        ("cache_max_entry_count", math.nan, "finite"),
        ("max_prefill_token_num", 0, "from 1 to"),
        ("tp", 0, "from 1 to"),
        ("rope_scaling_factor", -1.0, "0 (off) or positive"),
        ("use_logn_attn", 1, "True or False"),
        ("quant_policy", 4, "one of 0, 8"),
        ("quant_policy", 8.0, "one of 0, 8"),
        ("num_threads", 0, "from 1 to"),
        ("max_queue_size", 0, "from 1 to"),
        ("max_sessions", "many", "must be an integer"),
        ("session_ttl_s", 0, "above 0"),
        ("session_ttl_s", math.inf, "finite"),
        ("enable_prefix_caching", None, "True or False"),
        ("random_seed", -1, "from 0 to"),
    ],
)
def test_engine_options(demo_path: str, field: str, value: Any, right: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        Engine.from_pretrained(demo_path, **{field: value})
    assert str(caught.value).startswith(f"{field} is ")
    assert right in str(caught.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("sesion_len", "session_len"), ("max_model_len", "session_len"), ("seed", "random_seed")],
)
def test_unknown_engine_options(demo_path: str, name: str, meant: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"EngineConfig has no option '{name}'.*{meant}"):
        Engine.from_pretrained(demo_path, **{name: 1})


def test_what_this_version_does_not_do(demo_path: str) -> None:
    for options in ({"tp": 2}, {"device": "cuda"}):
        (name,) = options
        if name == "device" and "cuda" in treadle._engine.backends():  # type: ignore[attr-defined]
            continue
        with pytest.raises(UnsupportedError, match=name):
            Engine.from_pretrained(demo_path, **options)


def test_a_changed_engine_config_is_checked_again(demo_path: str) -> None:
    config = EngineConfig()
    config.max_batch_size = 0
    with pytest.raises(InvalidArgumentError, match="max_batch_size is 0"):
        Engine.from_pretrained(demo_path, config=config)


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        (None, InvalidArgumentError, "path is None.*demo_model_path"),
        (3, InvalidArgumentError, "path is 3"),
        ("org/model", NotFoundError, "'org/model': there is no such directory"),
        (__file__, NotFoundError, "it is not a directory"),
    ],
)
def test_model_path(path: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Engine.from_pretrained(path)


def test_other_arguments_of_from_pretrained(demo_path: str) -> None:
    with pytest.raises(InvalidArgumentError, match="config is a dict"):
        Engine.from_pretrained(demo_path, config={})  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="model_name is 3"):
        Engine.from_pretrained(demo_path, model_name=3)  # type: ignore[arg-type]
    with (
        pytest.raises(TreadleError, match="abacus"),
        Engine.from_pretrained(demo_path, model_name="abacus", cache_max_entry_count=8) as engine,
    ):
        _ = engine.model


def test_damaged_models(tmp_path: Path, demo_path: str) -> None:
    with pytest.raises(NotFoundError, match=r"config\.json"):
        Engine.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(TreadleError, match=r"config\.json"):
        Engine.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((Path(demo_path) / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(TreadleError, match=r"model\.safetensors"):
        Engine.from_pretrained(tmp_path)
    weights = (Path(demo_path) / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-1000])
    with pytest.raises(TreadleError, match=r"model\.safetensors"):
        Engine.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(weights)
    (tmp_path / "generation_config.json").write_text('{"temperature": "warm"}')
    with pytest.raises(TreadleError, match=r"generation_config\.json: temperature is 'warm'"):
        Engine.from_pretrained(tmp_path, cache_max_entry_count=8)


def test_a_pool_that_does_not_fit(device: Device, demo_path: str) -> None:
    with pytest.raises(TreadleError, match="KV pool does not fit"):
        device.load(demo_path, cache_max_entry_count=10**8)


def test_errors_are_also_what_python_expects() -> None:
    from treadle import errors

    assert issubclass(errors.InvalidArgumentError, ValueError)
    assert issubclass(errors.NotFoundError, FileNotFoundError)
    assert issubclass(errors.DeadlineExceededError, TimeoutError)
    assert issubclass(errors.OutOfMemoryError, MemoryError)
    error = errors.from_code("queue_full", "no room")
    assert isinstance(error, errors.QueueFullError)
    assert (error.code, str(error)) == ("queue_full", "no room")
    assert type(errors.from_code("news", "a later version's code")) is TreadleError


def test_unknown_names_of_the_package() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Enjine'"):
        _ = treadle.Enjine
    assert {"Engine", "pipeline", "GenerationConfig"} <= set(dir(treadle))
