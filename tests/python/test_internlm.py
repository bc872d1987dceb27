"""InternLM 1 to 3, whose code is not part of transformers, against the same weights as a llama."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import reference
from devices import Device
from families import (
    as_internlm,
    as_internlm2,
    as_internlm3,
    check,
    llama,
    loaded,
    rewrite_config,
    rope,
    split_llama,
)


def test_internlm(device: Device, tmp_path: Path) -> None:
    model = split_llama(device, attention_bias=True, num_key_value_heads=6)
    reference.save(model, tmp_path)
    as_internlm(tmp_path, bias=True, rotary={"type": "origin", "base": 10000})
    with loaded(device, tmp_path) as engine:
        assert engine.info.family == "internlm"
        check(engine, model)


def test_internlm_without_bias(device: Device, tmp_path: Path) -> None:
    model = split_llama(device, num_key_value_heads=6)
    reference.save(model, tmp_path)
    as_internlm(tmp_path, bias=False)
    with loaded(device, tmp_path) as engine:
        check(engine, model)


@pytest.mark.parametrize("factor", [1.0, 2.5])
def test_internlm_rotary_is_dynamic(factor: float, device: Device, tmp_path: Path) -> None:
    """InternLMDynamicNTKScalingRotaryEmbedding has the formula of transformers' dynamic type."""
    model = split_llama(
        device,
        attention_bias=True,
        num_key_value_heads=6,
        max_position_embeddings=64,
        **rope("dynamic", factor=factor),
    )
    reference.save(model, tmp_path)
    rotary = {"type": "dynamic", "base": 500, "scaling_factor": factor}
    as_internlm(tmp_path, bias=True, rotary=rotary)
    with loaded(device, tmp_path) as engine:
        check(engine, model, 150, stepwise=True)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_internlm2(kv_heads: int, bias: bool, device: Device, tmp_path: Path) -> None:
    model = split_llama(device, num_key_value_heads=kv_heads, attention_bias=bias)
    reference.save(model, tmp_path)
    as_internlm2(tmp_path, model, bias=bias)
    with loaded(device, tmp_path) as engine:
        assert engine.info.family == "internlm2"
        check(engine, model)


def test_internlm2_in_bfloat16_with_dynamic_rope(device: Device, tmp_path: Path) -> None:
    model = split_llama(device, max_position_embeddings=64, **rope("dynamic", factor=2.0))
    reference.save_rounded(model, torch.bfloat16, tmp_path)
    as_internlm2(tmp_path, model, bias=False)

    def change(config: dict[str, Any]) -> None:
        del config["rope_parameters"]
        config.update(rope_theta=500.0, rope_scaling={"type": "dynamic", "factor": 2.0})

    rewrite_config(tmp_path, change)
    with loaded(device, tmp_path) as engine:
        check(engine, model, 100, stepwise=True)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("qkv_bias", [False, True])
def test_internlm3(qkv_bias: bool, bias: bool, device: Device, tmp_path: Path) -> None:
    model = llama(device, attention_bias=True, mlp_bias=True, head_dim=16)
    reference.save(model, tmp_path)
    absent = [] if qkv_bias else ["q_proj.bias", "k_proj.bias", "v_proj.bias"]
    absent += [] if bias else ["o_proj.bias", "gate_proj.bias", "up_proj.bias", "down_proj.bias"]
    tensors = load_file(tmp_path / "model.safetensors")
    for name in list(tensors):
        if name.endswith(tuple(absent)):
            del tensors[name]
            model.get_parameter(name).data.zero_()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    as_internlm3(tmp_path, qkv_bias=qkv_bias, bias=bias)
    with loaded(device, tmp_path) as engine:
        assert engine.info.family == "internlm3"
        check(engine, model)
