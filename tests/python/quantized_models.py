"""Small quantised checkpoints of every layout, and the float32 models that they stand for. The
packers follow the formats' own descriptions and share nothing with the loader."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import reference
from reference import HfModel

Tensors = dict[str, torch.Tensor]
IN_ORDER = (0, 1, 2, 3, 4, 5, 6, 7)
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def pack(values: torch.Tensor, order: Sequence[int] = IN_ORDER) -> torch.Tensor:
    """Eight neighbours of a row, in ``order`` from the lowest bits up, as one int32."""
    eights = values.long().reshape(values.shape[0], -1, 8)
    words = sum(eights[:, :, place] << 4 * i for i, place in enumerate(order))
    assert isinstance(words, torch.Tensor)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int().contiguous()


def pack_down(values: torch.Tensor) -> torch.Tensor:
    return pack(values.T).T.contiguous()


@dataclass(frozen=True)
class Layout:
    method: str  # "awq", "gptq", "gptq_v2" or "packed"
    group: int = 64  # -1 = all inputs
    symmetric: bool = False
    scattered: bool = False  # desc_act
    scale_dtype: torch.dtype = torch.float16

    def config(self) -> dict[str, Any]:
        if self.method == "awq":
            return {"quant_method": "awq", "bits": 4, "group_size": self.group, "version": "gemm",
                    "zero_point": True}  # fmt: skip
        if self.method.startswith("gptq"):
            return {"quant_method": "gptq", "bits": 4, "group_size": self.group,
                    "desc_act": self.scattered, "sym": self.symmetric,
                    "checkpoint_format": self.method}  # fmt: skip
        weights: dict[str, Any] = {"num_bits": 4, "type": "int", "symmetric": self.symmetric}
        weights |= {"strategy": "channel"} if self.group < 0 else {
            "strategy": "group", "group_size": self.group}  # fmt: skip
        groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
        return {"quant_method": "compressed-tensors", "format": "pack-quantized",
                "config_groups": groups, "ignore": ["lm_head"]}  # fmt: skip

    def quantize(self, name: str, weight: torch.Tensor, tensors: Tensors) -> torch.Tensor:
        """Adds the layer's tensors, and returns what they mean."""
        out, size = weight.shape
        group = size if self.group < 0 else self.group
        groups = size // group
        index = torch.arange(size) % groups if self.scattered else torch.arange(size) // group
        order = torch.argsort(index, stable=True)
        parts = weight[:, order].reshape(out, groups, group)
        low, high = parts.amin(-1), parts.amax(-1)
        if self.symmetric:
            scales = (torch.maximum(-low, high) / 7).to(self.scale_dtype)
            zeros = torch.full_like(low, 8)
        else:
            scales = ((high - low) / 15).to(self.scale_dtype)
            zeros = (-low / scales.float()).round().clamp(1, 15)
        each, zero = scales.float()[:, index], zeros[:, index]
        q = (weight / each + zero).round().clamp(0, 15)
        if self.method == "packed":
            tensors[name + ".weight_packed"] = pack(q)
            tensors[name + ".weight_scale"] = scales.contiguous()
            tensors[name + ".weight_shape"] = torch.tensor([out, size])
            if not self.symmetric:
                tensors[name + ".weight_zero_point"] = pack_down(zeros)
        else:
            awq = self.method == "awq"
            stored = zeros - 1 if self.method == "gptq" else zeros
            tensors[name + ".qweight"] = pack(q.T, AWQ_ORDER) if awq else pack_down(q.T)
            tensors[name + ".qzeros"] = pack(stored.T, AWQ_ORDER if awq else IN_ORDER)
            tensors[name + ".scales"] = scales.T.contiguous()
            if not awq:
                tensors[name + ".g_idx"] = index.int()
        return (q - zero) * each


def make(layout: Layout, directory: Path, *, head: bool = False) -> HfModel:
    """Writes a quantised llama; returns the float32 model that it stands for."""
    config = LlamaConfig(
        vocab_size=328, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, attention_bias=True,
        max_position_embeddings=512, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = reference.build(LlamaForCausalLM, config)
    reference.save(model, directory)
    tensors = load_file(directory / "model.safetensors")
    meaning = dict(tensors)
    for name in list(tensors):
        if name.endswith("_proj.weight") or (head and name == "lm_head.weight"):
            weight = tensors.pop(name)
            meaning[name] = layout.quantize(name.removesuffix(".weight"), weight, tensors)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    path = directory / "config.json"
    fields = json.loads(path.read_text()) | {"quantization_config": layout.config()}
    path.write_text(json.dumps(fields))
    model.load_state_dict(meaning)
    return model
