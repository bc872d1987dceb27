"""What positions do to a model, against transformers: RoPE whose base grows with the text, and logn
attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import reference
from devices import Device
from families import FELT, check, llama, loaded, rewrite_config, rope
from reference import HfModel


@pytest.mark.parametrize("prompt_len", [30, 60, 64, 65, 150])
def test_dynamic_ntk_grows_with_the_text(prompt_len: int, device: Device, tmp_path: Path) -> None:
    """The base fits the prompt for all its tokens and afterwards grows with every token, as in
    generate(). The first prompt reaches the trained length while it generates."""
    model = llama(device, max_position_embeddings=64, **rope("dynamic", factor=3.0))
    reference.save(model, tmp_path)
    with loaded(device, tmp_path) as engine:
        check(engine, model, prompt_len, stepwise=True)


def test_dynamic_ntk_does_not_depend_on_chunks(device: Device, tmp_path: Path) -> None:
    model = llama(device, max_position_embeddings=64, **rope("dynamic", factor=3.0))
    reference.save(model, tmp_path)
    with loaded(device, tmp_path, max_prefill_token_num=7) as engine:
        for prompt_len in (50, 200):
            check(engine, model, prompt_len, stepwise=True)


def test_rope_scaling_factor_makes_any_model_dynamic(device: Device, tmp_path: Path) -> None:
    model = llama(device, max_position_embeddings=64, **rope("default"))
    reference.save(model, tmp_path)
    dynamic = llama(device, max_position_embeddings=64, **rope("dynamic", factor=2.0))
    with loaded(device, tmp_path, rope_scaling_factor=2.0) as engine:
        for prompt_len in (40, 150):
            check(engine, dynamic, prompt_len, stepwise=True)


def scale_queries_by_logn(model: HfModel, trained_len: int) -> HfModel:
    """Queries at position p times max(1, log(p + 1) / log(trained_len)), as Qwen and TurboMind have
    it. Rotation keeps lengths, so it may be done before it."""

    def scale(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        position = torch.arange(1, output.shape[1] + 1, dtype=torch.float64)
        factor = (position.log() / torch.tensor(float(trained_len)).log()).clamp(min=1.0)
        return output * factor[None, :, None].to(output.dtype)

    for layer in model.model.layers:
        layer.self_attn.q_proj.register_forward_hook(scale)
    return model


def test_logn_attention(device: Device, tmp_path: Path) -> None:
    model = llama(device, max_position_embeddings=20)
    reference.save(model, tmp_path)
    ids = reference.random_ids(150, model.config.vocab_size)
    plain = reference.logprobs(model, ids)
    with loaded(device, tmp_path, use_logn_attn=False) as engine:
        check(engine, model)
    scale_queries_by_logn(model, 20)
    assert (reference.logprobs(model, ids) - plain).abs().max() > FELT
    with loaded(device, tmp_path, use_logn_attn=True, max_prefill_token_num=50) as engine:
        check(engine, model)


def test_logn_attention_with_the_length_of_the_model(device: Device, tmp_path: Path) -> None:
    model = llama(device)
    reference.save(model, tmp_path)
    rewrite_config(tmp_path, lambda config: config.update(use_logn_attn=True, seq_length=30))
    with loaded(device, tmp_path) as engine:
        check(engine, scale_queries_by_logn(model, 30))
