"""The benchmark models, in every peer's format, cached in one directory.

    python -m bench.engine.models --cache DIR [--tiny-chat DIR]

writes ``DIR/<model>/{hf,model.gguf,ct2-float32,ct2-int8}`` for the demo model and for a random
415M llama, and skips what is already there.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from bench.engine.paths import DEMO_MODEL, ModelPaths

RANDOM_415M = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 896,
    "initializer_range": 0.02,
    "intermediate_size": 4864,
    "max_position_embeddings": 4096,
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "dtype": "float16",
    "vocab_size": 32000,
}


def _paths(cache: Path, name: str) -> ModelPaths:
    root = cache / name
    return ModelPaths(
        name, root / "hf", root / "model.gguf", root / "ct2-float32", root / "ct2-int8"
    )


def write_random_llama(out: Path, config: dict[str, object], seed: int = 0) -> None:
    """Writes an HF directory of normal(0, 0.02) fp16 weights (norms are ones) and a dummy
    one-word-per-id tokenizer, which some converters insist on."""
    size = {k: v for k, v in config.items() if isinstance(v, int)}
    hidden, inter, vocab = size["hidden_size"], size["intermediate_size"], size["vocab_size"]
    q_rows = size["num_attention_heads"] * size["head_dim"]
    kv_rows = size["num_key_value_heads"] * size["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocab, hidden),
    }
    for i in range(size["num_hidden_layers"]):
        p = f"model.layers.{i}."
        shapes[p + "input_layernorm.weight"] = (hidden,)
        shapes[p + "post_attention_layernorm.weight"] = (hidden,)
        shapes[p + "self_attn.q_proj.weight"] = (q_rows, hidden)
        shapes[p + "self_attn.k_proj.weight"] = (kv_rows, hidden)
        shapes[p + "self_attn.v_proj.weight"] = (kv_rows, hidden)
        shapes[p + "self_attn.o_proj.weight"] = (hidden, q_rows)
        shapes[p + "mlp.gate_proj.weight"] = (inter, hidden)
        shapes[p + "mlp.up_proj.weight"] = (inter, hidden)
        shapes[p + "mlp.down_proj.weight"] = (hidden, inter)
    rng = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.ones(shape, dtype=torch.float16)
        if len(shape) == 1
        else torch.randn(shape, generator=rng).mul_(0.02).half()
        for name, shape in shapes.items()
    }
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config, indent=1))
    (out / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 1, "eos_token_id": 2, "do_sample": False})
    )
    _write_dummy_tokenizer(out, vocab)


def _write_dummy_tokenizer(out: Path, vocab: int) -> None:
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, vocab)}
    special = [
        {
            "id": i,
            "content": word,
            "special": True,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
        for i, word in enumerate(("<unk>", "<s>", "</s>"))
    ]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"},
    }
    (out / "tokenizer.json").write_text(json.dumps(tokenizer))
    (out / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "<s>",
                "eos_token": "</s>",
                "unk_token": "<unk>",
            }
        )
    )


def _convert(paths: ModelPaths) -> None:
    from bench.engine.gguf_writer import write_gguf  # needs a package that only peers need

    if not paths.gguf.exists():
        write_gguf(paths.hf, paths.gguf)
    for out, quantization in ((paths.ct2_float32, "float32"), (paths.ct2_int8, "int8")):
        if not out.exists():
            from ctranslate2.converters import TransformersConverter

            TransformersConverter(str(paths.hf)).convert(str(out), quantization=quantization)


def prepare(cache: Path, tiny_chat: Path = DEMO_MODEL) -> dict[str, ModelPaths]:
    """Makes what is missing under `cache` and returns the paths by model name."""
    tiny, big = _paths(cache, "tiny-chat"), _paths(cache, "random-415m")
    if not (tiny.hf / "model.safetensors").exists():
        shutil.copytree(tiny_chat, tiny.hf, copy_function=shutil.copyfile, dirs_exist_ok=True)
    if not (big.hf / "tokenizer_config.json").exists():
        write_random_llama(big.hf, RANDOM_415M)
    for paths in (tiny, big):
        _convert(paths)
    return {p.name: p for p in (tiny, big)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True, help="where to keep the files")
    parser.add_argument("--tiny-chat", type=Path, default=DEMO_MODEL, help="the demo model")
    args = parser.parse_args()
    for paths in prepare(args.cache, args.tiny_chat).values():
        print(f"{paths.name}: {paths.weight_bytes() / 1e6:.1f} MB of weights in {paths.hf.parent}")


if __name__ == "__main__":
    main()
