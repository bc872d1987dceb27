"""Small random models for treadle lite, and AutoAWQ's layout written out once more."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import reference
from families import as_internlm2, as_internlm3, build
from reference import HfModel
from tokenizer_models import LLAMA3_SPLIT, save_byte_level

Tensors = dict[str, torch.Tensor]

SIZES: dict[str, Any] = {
    "vocab_size": 608,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
CALIBRATION: dict[str, Any] = {"samples": 8, "seqlen": 48}


def llama(**overrides: Any) -> HfModel:
    return build("llama", SIZES | overrides)


def mistral() -> HfModel:
    return build("mistral", SIZES | {"sliding_window": 16})


def qwen2() -> HfModel:
    """The last layers have a sliding window, the first one has not."""
    windows = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}
    return build("qwen2", SIZES | windows)


def qwen3() -> HfModel:
    return build("qwen3", SIZES | {"tie_word_embeddings": True})


FAMILIES: dict[str, Callable[[], HfModel]] = {
    "llama": llama,
    "llama-biases-one-head-each": lambda: llama(
        attention_bias=True, mlp_bias=True, num_key_value_heads=4
    ),
    "mistral": mistral,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "internlm2": lambda: llama(attention_bias=True),
    "internlm3": lambda: llama(attention_bias=True),
}


def save(model: HfModel, directory: Path, name: str = "") -> Path:
    reference.save(model, directory)
    save_byte_level(directory, LLAMA3_SPLIT, adds_bos=True)
    if name == "internlm2":
        as_internlm2(directory, model, bias=True)
    elif name == "internlm3":
        as_internlm3(directory, qkv_bias=True, bias=False)
        drop_biases(model, directory)
    return directory


def drop_biases(model: HfModel, directory: Path) -> None:
    """Of o_proj, which internlm3 has only with ``bias``."""
    tensors = load_file(directory / "model.safetensors")
    for name in [name for name in tensors if name.endswith("o_proj.bias")]:
        del tensors[name]
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.bias.zero_()


# AutoAWQ's layout, as AutoAWQ's own packing describes it: column 8 n + ORDER[i] in bits 4 i to
# 4 i + 3 of word n.
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def unpack(words: torch.Tensor) -> torch.Tensor:
    out = torch.empty(words.shape[0], 8 * words.shape[1])
    for i, column in enumerate(ORDER):
        out[:, column::8] = (words.long() >> 4 * i & 15).float()
    return out


def restore(tensors: Tensors, name: str, group: int) -> torch.Tensor:
    """[out, in], after checks of types and shapes."""
    q, zeros, scales = (tensors.pop(f"{name}.{kind}") for kind in ("qweight", "qzeros", "scales"))
    size, out = q.shape[0], q.shape[1] * 8
    assert q.dtype == zeros.dtype == torch.int32
    assert scales.dtype == torch.float16
    assert zeros.shape == (size // group, out // 8)
    assert scales.shape == (size // group, out)
    each = torch.arange(size) // group
    return ((unpack(q) - unpack(zeros)[each]) * scales.float()[each]).T


def restored(directory: Path) -> Tensors:
    """The float32 weights that a quantised directory stands for."""
    config = json.loads((directory / "config.json").read_text("utf-8"))
    quantization = config["quantization_config"]
    head = "output" if config["model_type"] == "internlm2" else "lm_head"
    assert quantization == {
        "quant_method": "awq", "bits": 4, "group_size": quantization["group_size"],
        "zero_point": True, "version": "gemm", "modules_to_not_convert": [head],
    }  # fmt: skip
    tensors = load_file(directory / "model.safetensors")
    names = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    linears = 5 if config["model_type"] == "internlm2" else 7
    assert len(names) == linears * config["num_hidden_layers"]
    weights = {
        f"{name}.weight": restore(tensors, name, quantization["group_size"]) for name in names
    }
    return weights | {name: tensor.float() for name, tensor in tensors.items()}


INTERNLM2_PARTS = {
    "model.tok_embeddings": "model.embed_tokens",
    "output": "lm_head",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def as_llama_tensors(tensors: Tensors, config: Any) -> Tensors:
    """internlm2's names and rows as llama's."""
    out: Tensors = {}
    group = config.num_attention_heads // config.num_key_value_heads
    for name, tensor in tensors.items():
        if ".wqkv." in name:
            heads = tensor.unflatten(0, (config.num_key_value_heads, group + 2, config.head_dim))
            parts = {"q": heads[:, :group], "k": heads[:, group], "v": heads[:, group + 1]}
            for letter, rows in parts.items():
                key = name.replace("attention.wqkv", f"self_attn.{letter}_proj")
                out[key] = rows.reshape(-1, *tensor.shape[1:])
            continue
        for stored, inside in INTERNLM2_PARTS.items():
            name = name.replace(stored, inside)
        out[name] = tensor
    return out


def change_config(directory: Path, **fields: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
