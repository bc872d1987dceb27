"""Writes a GGUF file for llama.cpp from a Hugging Face llama directory.

Matrices are fp16 and norms fp32, as llama.cpp wants them. The file carries no tokenizer
(``tokenizer.ggml.model = none``): the benchmarks speak in token ids.
"""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

_TOP = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _interleave_rope(w: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Reorders the rows of a q or k projection from HF's RoPE pairs (i, i + head_dim/2) to the
    neighbouring pairs (2i, 2i + 1) that llama.cpp rotates for the llama architecture.

    `w` is ``[heads * head_dim, ...]``; so is the result."""
    half = w.shape[0] // heads // 2
    return w.reshape(heads, 2, half, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def _gguf_name(name: str) -> str:
    stem, suffix = name.rsplit(".", 1)
    if stem in _TOP:
        return f"{_TOP[stem]}.{suffix}"
    layer, part = stem.removeprefix("model.layers.").split(".", 1)
    if part not in _LAYER:
        raise ValueError(f"tensor '{name}' has no place in a llama GGUF")
    return f"blk.{layer}.{_LAYER[part]}.{suffix}"


def write_gguf(hf_dir: Path, out: Path) -> None:
    """Converts `hf_dir` (a llama with plain RoPE, any float dtype) to the file `out`."""
    config = json.loads((hf_dir / "config.json").read_text())
    rope = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or rope
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if config["model_type"] != "llama" or kind != "default":
        raise ValueError(
            f"{hf_dir}: model_type '{config['model_type']}' with RoPE scaling '{kind}' is not "
            "handled here; only llama with default RoPE is"
        )
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    head_dim = config.get("head_dim") or config["hidden_size"] // heads

    partial = out.with_suffix(".part")  # a broken run must not leave a file that looks whole
    writer = gguf.GGUFWriter(partial, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config.get("rope_theta") or rope["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("none")

    for shard in sorted(hf_dir.glob("*.safetensors")):
        for name, tensor in load_file(shard).items():
            data = tensor.to(torch.float32).numpy()
            if ".q_proj." in name or ".k_proj." in name:
                data = _interleave_rope(data, heads if ".q_proj." in name else kv_heads)
            writer.add_tensor(_gguf_name(name), data.astype(np.float16) if data.ndim == 2 else data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(out)
