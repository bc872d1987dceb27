"""Weights and configuration files as they are found: in 16 bits, of several types, in shards,
written by older releases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import devices
import reference
from devices import Device
from families import check, llama, loaded, qwen2, qwen3, rewrite_config, rope, split_llama
from reference import HfModel


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("build", [llama, qwen2, qwen3], ids=["llama", "qwen2", "qwen3"])
def test_16_bit_weights(
    build: Callable[..., HfModel], dtype: torch.dtype, device: Device, tmp_path: Path
) -> None:
    """Whatever they are computed in, equal to the rounded weights in float32."""
    model = reference.save_rounded(build(device), dtype, tmp_path)
    with loaded(device, tmp_path) as engine:
        stored = str(dtype).removeprefix("torch.")
        assert engine.info.weight_dtype == (stored if device.exact else device.dtype)
        check(engine, model)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float16, 0.02), (torch.bfloat16, 0.2)], ids=["fp16", "bf16"]
)
def test_16_bits_are_close(
    dtype: torch.dtype, tolerance: float, device: Device, tmp_path: Path
) -> None:
    model = reference.save_rounded(llama(device), dtype, tmp_path)
    with loaded(device, tmp_path, dtype="auto") as engine:
        assert engine.info.kv_dtype == engine.info.weight_dtype
        prompt = reference.random_ids(150, model.config.vocab_size)
        difference = reference.compare(engine, model, prompt)
        # A GPU keeps activations in 16 bits, too.
        assert devices.CPU.tolerance < difference.largest < tolerance * (1 if device.exact else 2)


def test_weights_of_several_types(device: Device, tmp_path: Path) -> None:
    model = llama(device, attention_bias=True)
    reference.save(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    dtypes = [torch.float16, torch.bfloat16, torch.float32]
    for i, name in enumerate(sorted(tensors)):
        tensors[name] = tensors[name].to(dtypes[i % 3])
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    model.load_state_dict(tensors)
    with loaded(device, tmp_path) as engine:
        check(engine, model)


def test_shards(device: Device, tmp_path: Path) -> None:
    model = qwen3(device)
    reference.save(model, tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert (tmp_path / "model.safetensors.index.json").exists()
    with loaded(device, tmp_path) as engine:
        check(engine, model)


@pytest.mark.parametrize("kind", ["type", "rope_type"])
def test_older_configuration_files(kind: str, device: Device, tmp_path: Path) -> None:
    """As transformers 4 wrote them: rope_theta, rope_scaling, torch_dtype, nothing redundant."""
    model = split_llama(device, **rope("linear", factor=4.0))
    reference.save(model, tmp_path)

    def change(config: dict[str, Any]) -> None:
        del config["rope_parameters"], config["head_dim"]
        config["torch_dtype"] = config.pop("dtype")
        config["rope_theta"] = 500.0
        config["rope_scaling"] = {kind: "linear", "factor": 4.0}

    rewrite_config(tmp_path, change)
    with loaded(device, tmp_path) as engine:
        check(engine, model)


def test_older_qwen2_window(device: Device, tmp_path: Path) -> None:
    """Before layer_types there was max_window_layers alone."""
    model = qwen2(device, use_sliding_window=True, sliding_window=33, max_window_layers=1)
    reference.save(model, tmp_path)
    rewrite_config(tmp_path, lambda config: config.pop("layer_types"))
    with loaded(device, tmp_path) as engine:
        check(engine, model)
