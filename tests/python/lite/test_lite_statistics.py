"""Calibration: statistics against whole models of transformers, samples, killed runs that go on,
ranges of K and V."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    LlamaForCausalLM,
)

import reference
from lite_models import CALIBRATION, FAMILIES, Tensors, llama, restored, save
from treadle import Engine
from treadle.errors import (
    ConfigError,
    InvalidArgumentError,
    UnsupportedError,
)
from treadle.lite import auto_awq, calibrate, kv_qparams
from treadle.lite.decoder_layer import DecoderLayer
from treadle.lite.samples import load_samples
from treadle.lite.work_dir import WorkDir
from treadle.tokenizer import Tokenizer


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "internlm2"])
def test_statistics_are_those_of_the_whole_model(name: str, data: Path, tmp_path: Path) -> None:
    model = FAMILIES[name]()
    source = save(model, tmp_path / "model", name)
    calibrate(source, data, tmp_path / "work", **CALIBRATION)
    ids = load_samples(source, data, seed=0, chat=False, **CALIBRATION)
    assert ids.shape == (8, 48)
    inputs: dict[str, torch.Tensor] = {}
    for path, module in model.named_modules():
        if path.endswith("_proj"):
            module.register_forward_pre_hook(
                lambda _, args, path=path: inputs.__setitem__(path, args[0].flatten(0, 1))
            )
    with torch.inference_mode():
        cache = model(torch.from_numpy(ids), use_cache=True).past_key_values
        windowed = name == "qwen2"  # whose cache keeps the newest keys alone
    stored = {"self_attn.q_proj": "attention.wqkv", "self_attn.o_proj": "attention.wo",
              "mlp.up_proj": "feed_forward.w3", "mlp.down_proj": "feed_forward.w2"}  # fmt: skip
    for index in range(3):
        tensors = load_file(tmp_path / "work" / "statistics" / f"{index:04d}.safetensors")
        for part in stored:
            x = inputs[f"model.layers.{index}.{part}"].abs()
            key = stored[part] if name == "internlm2" else part
            torch.testing.assert_close(tensors[f"{key}.input_max"], x.amax(0), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(
                tensors[f"{key}.input_mean"], x.mean(0), rtol=1e-4, atol=1e-5
            )
        if windowed and index > 0:
            continue
        for letter, kept in (("k", cache.layers[index].keys), ("v", cache.layers[index].values)):
            assert kept.shape == (8, 2, 48, 16)
            low, high = kept.amin((0, 2, 3)), kept.amax((0, 2, 3))
            close(tensors[f"{letter}_min"], low)
            close(tensors[f"{letter}_max"], high)


class Killed(BaseException):
    pass


@pytest.fixture
def dies(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """dies(n): the program is killed when it has done n layers. dies(-1): never again."""
    save_statistics = WorkDir.save
    after = -1

    def save_or_die(self: WorkDir, kind: str, layer: int, tensors: Tensors) -> None:
        if layer == after:
            raise Killed
        save_statistics(self, kind, layer, tensors)

    monkeypatch.setattr(WorkDir, "save", save_or_die)

    def set_after(layers: int) -> None:
        nonlocal after
        after = layers

    return set_after


@pytest.fixture
def read_layers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Indices of the layers that were computed."""
    layers: list[int] = []
    read = DecoderLayer.read

    def counted(self: DecoderLayer, index: int) -> None:
        layers.append(index)
        read(self, index)

    monkeypatch.setattr(DecoderLayer, "read", counted)
    return layers


def test_calibrate_goes_on(
    model_dir: Path,
    data: Path,
    tmp_path: Path,
    dies: Callable[[int], None],
    read_layers: list[int],
) -> None:
    calibrate(model_dir, data, tmp_path / "whole", **CALIBRATION)
    dies(1)
    with pytest.raises(Killed):
        calibrate(model_dir, data, tmp_path / "work", **CALIBRATION)
    dies(-1)
    read_layers.clear()
    calibrate(model_dir, data, tmp_path / "work", **CALIBRATION)
    assert read_layers == [1, 2]
    for index in range(3):
        name = f"statistics/{index:04d}.safetensors"
        assert (tmp_path / "work" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["run.json", "statistics"]
    read_layers.clear()
    calibrate(model_dir, data, tmp_path / "work", **CALIBRATION)
    assert read_layers == []


@pytest.mark.parametrize("scheme", ["awq", "rtn"])
def test_awq_goes_on(
    scheme: str,
    model_dir: Path,
    data: Path,
    tmp_path: Path,
    dies: Callable[[int], None],
    read_layers: list[int],
) -> None:
    options: dict[str, Any] = {"scheme": scheme, "group_size": 32, **CALIBRATION}
    auto_awq(model_dir, tmp_path / "whole", data, **options)
    dies(2)
    with pytest.raises(Killed):
        auto_awq(model_dir, tmp_path / "out", data, **options)
    assert not (tmp_path / "out").exists()
    dies(-1)
    read_layers.clear()
    auto_awq(model_dir, tmp_path / "out", data, **options)
    assert read_layers == [2]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "out")]
    assert weights[0] == weights[1]


def test_another_run_is_refused(model_dir: Path, data: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    calibrate(model_dir, data, work, samples=8, seqlen=48)
    with pytest.raises(InvalidArgumentError, match=r"whose samples is 8, not 4"):
        calibrate(model_dir, data, work, samples=4, seqlen=48)
    with pytest.raises(InvalidArgumentError, match=r"whose tokens is"):
        calibrate(model_dir, data, work, samples=8, seqlen=48, seed=1)
    calibrate(model_dir, data, work, samples=4, seqlen=48, restart=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(InvalidArgumentError, match=r"mine': it exists and is not an earlier run's"):
        calibrate(model_dir, data, tmp_path / "mine", **CALIBRATION)
    with pytest.raises(InvalidArgumentError, match=r"mine': it exists"):
        calibrate(model_dir, data, tmp_path / "mine", restart=True, **CALIBRATION)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_large_models_come_in_shards(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auto_awq(model_dir, tmp_path / "one", scheme="rtn", group_size=32)
    monkeypatch.setattr("treadle.lite.writer._SHARD_BYTES", 60_000)
    auto_awq(model_dir, tmp_path / "many", scheme="rtn", group_size=32)
    shards = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    tensors: Tensors = {}
    for shard in shards:
        tensors |= load_file(shard)
    expected = load_file(tmp_path / "one" / "model.safetensors")
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in tensors)
    Engine.from_pretrained(tmp_path / "many", device="cpu").close()
    auto_awq_from_shards = tmp_path / "again"
    with pytest.raises(UnsupportedError, match="quantised already"):
        auto_awq(tmp_path / "many", auto_awq_from_shards, scheme="rtn", group_size=32)


# Samples.


def test_too_little_data_is_told(
    model_dir: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load_samples(model_dir, data, samples=5, seqlen=40, seed=0, chat=False)
    assert not caplog.messages
    ids = load_samples(model_dir, data, samples=10_000, seqlen=40, seed=0, chat=False)
    assert f"it has {len(ids)} samples of 40 tokens, where 10000 of 40 were" in caplog.text


def test_samples_of_a_text(model_dir: Path, data: Path) -> None:
    options: dict[str, Any] = {"samples": 5, "seqlen": 40, "chat": False}
    ids = load_samples(model_dir, data, seed=0, **options)
    assert ids.shape == (5, 40)
    assert (ids[:, 0] == 0).all()  # BOS
    assert (ids[:, 1:] != 0).all()
    assert np.array_equal(ids, load_samples(model_dir, data, seed=0, **options))
    assert not np.array_equal(ids, load_samples(model_dir, data, seed=1, **options))
    everything = load_samples(model_dir, data, samples=10_000, seqlen=40, seed=0, chat=False)
    assert 5 < len(everything) < 10_000
    assert all(row.tolist() in everything.tolist() for row in ids)


def test_samples_of_records(demo_path: str, tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    path.write_text(json.dumps({"messages": messages}) + "\n\n" + '{"text": "plain text"}\n' * 20)
    options: dict[str, Any] = {"samples": 1, "seqlen": 400, "seed": 0}
    tokenizer = Tokenizer.from_pretrained(demo_path)

    def text(chat: bool) -> str:
        ids = load_samples(demo_path, path, chat=chat, **options)
        return tokenizer.decode(ids[0], skip_special_tokens=False)

    plain, chat = text(False), text(True)
    turn = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>"
    assert turn in plain
    assert turn in chat
    assert plain.count("<|im_start|>") == 2
    assert chat.count("<|im_start|>user\nplain text<|im_end|>") == 20
    assert chat.count("<s>") == 21


def test_samples_of_a_dataset(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Rows(list[dict[str, str]]):
        column_names = ["text"]  # noqa: RUF012

    rows = Rows([{"text": "the quick brown fox jumps"}] * 30)
    library: Any = types.ModuleType("datasets")
    library.load_from_disk = lambda path: {"test": Rows(), "train": rows}
    monkeypatch.setitem(sys.modules, "datasets", library)
    options: dict[str, Any] = {"samples": 2, "seqlen": 32, "seed": 0, "chat": False}
    assert load_samples(model_dir, tmp_path, **options).shape == (2, 32)
    Rows.column_names = ["label"]
    with pytest.raises(ConfigError, match="it has the columns label"):
        load_samples(model_dir, tmp_path, **options)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="pip install datasets"):
        load_samples(model_dir, tmp_path, **options)


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("short", "a.txt", r"data has \d+ tokens: at least 32"),
        (" \n", "a.txt", "empty, expected a text"),
        ('{"text": "a"}\n{"content": "b"}\n', "a.jsonl", r'a\.jsonl:2: expected .* "messages"'),
        ("{", "a.jsonl", r"a\.jsonl:1: malformed JSON"),
    ],
)
def test_wrong_data_is_refused(
    content: str, name: str, message: str, model_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises((ConfigError, InvalidArgumentError), match=message):
        calibrate(model_dir, tmp_path / name, tmp_path / "work", **CALIBRATION)
    assert not (tmp_path / "work").exists()


# Ranges of K and V.


@pytest.mark.parametrize("symmetric", [False, True])
def test_kv_qparams(symmetric: bool, model_dir: Path, data: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    calibrate(model_dir, data, work, **CALIBRATION)
    path = kv_qparams(work, model_dir, symmetric=symmetric)
    assert path == model_dir / "kv_qparams.safetensors"
    values = load_file(path)["kv_qparams"]
    assert values.shape == (3, 2, 2, 2)
    assert values.dtype == torch.float32
    for layer in range(3):
        tensors = load_file(work / "statistics" / f"{layer:04d}.safetensors")
        for which, letter in enumerate("kv"):
            for head in range(2):
                low = float(tensors[f"{letter}_min"][head])
                high = float(tensors[f"{letter}_max"][head])
                expected = (
                    (max(abs(low), abs(high)) / 127, 0.0)
                    if symmetric
                    else ((high - low) / 255, (low + high) / 2)
                )
                assert values[layer, which, head].tolist() == pytest.approx(expected, rel=1e-5)
    model = LlamaForCausalLM.from_pretrained(model_dir, dtype="float32").eval()
    ids = load_samples(model_dir, data, samples=2, seqlen=64, seed=9, chat=False)[0].tolist()
    with Engine.from_pretrained(
        model_dir, device="cpu", dtype="float32", quant_policy=8, session_len=256
    ) as engine:
        assert 0 < reference.compare(engine, model, ids, 8).largest < 0.3


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_kv_qparams_of_a_quantised_model(kv_heads: int, data: Path, tmp_path: Path) -> None:
    """AWQ scales V, and the ranges that it leaves are those of what it wrote."""
    model = llama(num_key_value_heads=kv_heads, attention_bias=True)
    with torch.no_grad():
        for layer in model.model.layers:
            for rows in (layer.self_attn.v_proj.weight, layer.self_attn.v_proj.bias):
                rows[::7] *= 20
    source = save(model, tmp_path / "model")
    work, out = tmp_path / "work", tmp_path / "awq"
    auto_awq(source, out, data, group_size=32, work_dir=work, **CALIBRATION)
    model.load_state_dict(restored(out))
    ids = load_samples(source, data, seed=0, chat=False, **CALIBRATION)
    with torch.inference_mode():
        cache = model(torch.from_numpy(ids), use_cache=True).past_key_values
    values = load_file(kv_qparams(work, out))["kv_qparams"]
    for layer in range(3):
        for which, kept in enumerate((cache.layers[layer].keys, cache.layers[layer].values)):
            low, high = kept.amin((0, 2, 3)), kept.amax((0, 2, 3))
            ratio = values[layer, which, :, 0] * 255 / (high - low)
            assert 0.8 < float(ratio.min()) <= float(ratio.max()) < 1.25
    with pytest.raises(InvalidArgumentError, match="the ranges of the model that auto_awq wrote"):
        kv_qparams(work, source)
    calibrate(source, data, tmp_path / "before", **CALIBRATION)
    with pytest.raises(InvalidArgumentError, match="AWQ has changed the ranges"):
        kv_qparams(tmp_path / "before", out)
