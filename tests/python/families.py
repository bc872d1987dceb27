"""Small random models of every family, written as their checkpoints are, and the comparison of an
engine with transformers on them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import devices
import reference
from devices import Device
from reference import HfModel
from treadle import Engine

#: What a feature must change at least, for its test to mean something.
FELT = 0.05

#: No size is a multiple of a vector register where the format allows another one.
SIZES: dict[str, Any] = {
    "vocab_size": 331,
    "hidden_size": 72,
    "intermediate_size": 148,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

#: What transformers has of each family.
CLASSES: dict[str, tuple[Callable[[Any], HfModel], Callable[..., Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig),
    "mistral": (MistralForCausalLM, MistralConfig),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config),
}


def build(family: str, config: dict[str, Any]) -> HfModel:
    model, settings = CLASSES[family]
    return reference.build(model, settings(**config))


def llama(device: Device, **overrides: Any) -> HfModel:
    return build("llama", device.fit(SIZES | overrides))


def split_llama(device: Device, **overrides: Any) -> HfModel:
    """Its heads divide the hidden size: for configuration files that do not name head_dim."""
    return build("llama", device.fit(SIZES | overrides, split=True))


def mistral(device: Device, **overrides: Any) -> HfModel:
    return build("mistral", device.fit(SIZES | overrides))


def qwen2(device: Device, **overrides: Any) -> HfModel:
    return build("qwen2", device.fit(SIZES | overrides))


def qwen3(device: Device, **overrides: Any) -> HfModel:
    return build("qwen3", device.fit(SIZES | overrides))


def rope(rope_type: str, **settings: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 500.0} | settings}


@contextmanager
def loaded(device: Device, directory: Path, **options: Any) -> Iterator[Engine]:
    options = {"dtype": device.dtype, "session_len": 512, "max_batch_size": 2} | options
    with device.load(directory, num_threads=2, **options) as engine:
        yield engine


def check(engine: Engine, model: HfModel, prompt_len: int = 150, **options: Any) -> None:
    """Long prompts cross KV blocks and, with 128 tokens a step, chunks."""
    prompt = reference.random_ids(prompt_len, model.config.vocab_size)
    difference = reference.compare(engine, model, prompt, **options)
    device = devices.of(engine)
    assert difference.largest < device.tolerance, difference
    assert difference.regret < device.near_tie, difference


def rewrite_config(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text("utf-8"))
    change(config)
    path.write_text(json.dumps(config), "utf-8")


# InternLM, whose code is not part of transformers: its weights under their own names, and the same
# weights as a llama for the reference.


def as_internlm(directory: Path, **fields: Any) -> None:
    """https://huggingface.co/internlm/internlm-chat-7b, modeling_internlm.py: a llama with biases
    on q, k, v and o; ``rotary`` names the embedding."""

    def change(config: dict[str, Any]) -> None:
        for name in ("rope_parameters", "attention_bias", "mlp_bias", "head_dim"):
            config.pop(name, None)
        config.update(architectures=["InternLMForCausalLM"], model_type="internlm", **fields)

    rewrite_config(directory, change)


INTERNLM2_NAMES = {
    "model.embed_tokens": "model.tok_embeddings",
    "lm_head": "output",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}


def as_internlm2(directory: Path, model: HfModel, **fields: Any) -> None:
    """https://huggingface.co/internlm/internlm2-7b, modeling_internlm2.py: names of its own, and
    wqkv read as "(h gs d)" with gs = the group's queries, then k, then v."""
    config = model.config
    group = config.num_attention_heads // config.num_key_value_heads
    tensors: dict[str, torch.Tensor] = {}
    weights = load_file(directory / "model.safetensors")
    for name, tensor in weights.items():
        layer, found, part = name.partition("self_attn.q_proj.")
        if found:
            heads = [
                weights[f"{layer}self_attn.{letter}_proj.{part}"].unflatten(
                    0, (config.num_key_value_heads, count, config.head_dim)
                )
                for letter, count in (("q", group), ("k", 1), ("v", 1))
            ]
            tensors[f"{layer}attention.wqkv.{part}"] = torch.cat(heads, 1).flatten(0, 2)
        elif "k_proj" not in name and "v_proj" not in name:
            for old, new in INTERNLM2_NAMES.items():
                name = name.replace(old, new)
            tensors[name] = tensor
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})

    def change(config: dict[str, Any]) -> None:
        for name in ("attention_bias", "mlp_bias", "head_dim"):
            config.pop(name, None)
        config.update(architectures=["InternLM2ForCausalLM"], model_type="internlm2", **fields)

    rewrite_config(directory, change)


def as_internlm3(directory: Path, **fields: Any) -> None:
    """https://huggingface.co/internlm/internlm3-8b-instruct, modeling_internlm3.py: a llama with
    ``qkv_bias`` for q, k and v, and ``bias`` for o and the three of the MLP."""

    def change(config: dict[str, Any]) -> None:
        del config["attention_bias"], config["mlp_bias"]
        config.update(architectures=["InternLM3ForCausalLM"], model_type="internlm3", **fields)

    rewrite_config(directory, change)
