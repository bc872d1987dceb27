"""Writes the seed inputs of the fuzz targets into corpus/. The result is stored in the tree; run
this again when a reader learns something new."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).resolve().parent / "corpus"

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 32,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "torch_dtype": "float16",
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 0.7,
    "mscale_all_dim": 1.0,
    "attention_factor": None,
    "truncate": False,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"], "attention_bias": True, "mlp_bias": True},
    "llama3": {"architectures": ["LlamaForCausalLM"], "rope_theta": 5e5, "rope_scaling": LLAMA3},
    "llama_new": {
        "model_type": "llama",
        "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"},
    },
    "linear": {
        "architectures": ["LlamaForCausalLM"],
        "rope_scaling": {"type": "linear", "factor": 2},
        "partial_rotary_factor": 0.5,
        "use_logn_attn": True,
        "seq_length": 128,
    },
    "mistral": {"architectures": ["MistralForCausalLM"], "sliding_window": 16, "head_dim": 32},
    "qwen2": {
        "architectures": ["Qwen2ForCausalLM"],
        "use_sliding_window": True,
        "sliding_window": 16,
        "max_window_layers": 1,
        "rope_scaling": YARN,
    },
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"],
        "use_sliding_window": True,
        "layer_types": ["full_attention", "sliding_attention"],
    },
    "internlm": {
        "architectures": ["InternLMForCausalLM"],
        "bias": True,
        "rotary": {"base": 10000, "type": "dynamic", "scaling_factor": 2.0},
    },
    "internlm2": {
        "architectures": ["InternLM2ForCausalLM"],
        "bias": False,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    },
    "internlm3": {"architectures": ["InternLM3ForCausalLM"], "qkv_bias": True, "bias": False},
    "awq": {
        "architectures": ["LlamaForCausalLM"],
        "quantization_config": {"quant_method": "awq"},
        "num_local_experts": 0,
        "logits_scaling": 1.0,
    },
}


WORKSPACE = """\
; made by hand
[llama]
model_name = internlm-chat-7b
tensor_para_size = 1
head_num = 4
kv_head_num = 2
vocab_size = 32
num_layer = 2
inter_size = 96
norm_eps = 1e-06
attn_bias = 0
start_id = 1
end_id = 2, 3
session_len = 2048
weight_type = fp16
rotary_embedding = 16
rope_theta = 10000.0
size_per_head = 16
group_size = 0
max_batch_size = 64
cache_max_entry_count = 0.5
max_prefill_token_num = 512
quant_policy = 4 ; int8
rope_scaling_factor = 2.5
use_logn_attn = True
step_length = 1
"""


def safetensors(header: Any, data: bytes, pad: int = 0) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode() if header is not None else b""
    text += b" " * pad
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write(folder: str, name: str, content: bytes) -> None:
    path = CORPUS / folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def main() -> None:
    generation = json.dumps({"eos_token_id": 4, "do_sample": True}).encode()
    for name, fields in CONFIGS.items():
        text = json.dumps({**fields, **SIZES}).encode()
        write("config", name, text)
        write("config", name + "_generation", text + b"\0" + generation)
    write("config", "deep", b'{"architectures":' + b"[" * 80 + b"]" * 80 + b"}")
    write("config", "twice", b'{"a":1,"a":2}')

    write("workspace_config", "all", WORKSPACE.encode())
    write("workspace_config", "windows", b"\xef\xbb\xbf" + WORKSPACE.replace("\n", "\r\n").encode())
    write("workspace_config", "unknown", b"[llama]\nquant_polcy = 8")
    write("workspace_config", "twice", b"[llama]\nnum_layer = 2\nnum_layer = 2")
    write("workspace_config", "nothing", b"")

    two = {
        "__metadata__": {"format": "pt"},
        "a": entry("F16", [2, 2], 0, 8),
        "b": entry("BF16", [3], 8, 14),
    }
    write("safetensors", "two", safetensors(two, bytes(14), pad=3))
    write("safetensors", "empty", safetensors({}, b""))
    write("safetensors", "scalar", safetensors({"s": entry("I64", [], 0, 8)}, bytes(8)))
    write("safetensors", "zero", safetensors({"z": entry("F32", [0, 9], 0, 0)}, b""))
    overlap = {"a": entry("U8", [3], 0, 3), "b": entry("U8", [3], 1, 4)}
    write("safetensors", "overlap", safetensors(overlap, bytes(4)))
    hole = {"a": entry("U8", [1], 0, 1), "b": entry("U8", [1], 2, 3)}
    write("safetensors", "hole", safetensors(hole, bytes(3)))
    huge = {"a": entry("F32", [1 << 32, 1 << 32], 0, 4)}
    write("safetensors", "overflow", safetensors(huge, bytes(4)))
    write("safetensors", "long_header", b"\xff" * 8 + b"{}")
    write("safetensors", "truncated", safetensors(two, bytes(13)))


if __name__ == "__main__":
    main()
