"""Calibration: statistics against whole models of transformers, ranges of K and V, large models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

import reference
from lite_models import CALIBRATION, FAMILIES, Tensors, llama, restored, save
from treadle import Engine
from treadle.errors import InvalidArgumentError, UnsupportedError
from treadle.lite import auto_awq, calibrate, kv_qparams
from treadle.lite.samples import load_samples


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
