"""``treadle info``: what a model directory means and how much of it fits."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from treadle.cli import options
from treadle.errors import TreadleError


def gather(path: str, model_name: str | None, native_config: Any) -> dict[str, Any]:
    """Everything that is printed, by name; sizes in bytes."""
    from treadle import _engine
    from treadle.engine import _check_path
    from treadle.workspace import weight_folder

    path = _check_path(path)
    facts: dict[str, Any] = {"path": path, **_engine.inspect(path, native_config)}
    folder = weight_folder(path)
    files = [entry for entry in os.scandir(folder) if entry.name.endswith(".safetensors")]
    facts["weight_files"] = len(files)
    facts["weight_file_bytes"] = sum(entry.stat().st_size for entry in files)
    facts["kv_pool_bytes"] = (
        facts["kv_blocks"] * facts["kv_block_tokens"] * facts["kv_bytes_per_token"]
    )
    facts["kv_pool_tokens"] = facts["kv_blocks"] * facts["kv_block_tokens"]
    left = facts["free_bytes"] - facts["weight_bytes"] - facts["workspace_bytes"]
    facts["tokens_that_fit"] = max(0, left) // facts["kv_bytes_per_token"]
    facts |= _text_side(path, model_name or facts["model_name"] or None)
    return facts


def _text_side(path: str, model_name: str | None) -> dict[str, Any]:
    """The tokenizer and the chat format; what is wrong with them is not worth failing for."""
    from treadle.chat_template import ChatTemplate
    from treadle.tokenizer import Tokenizer

    try:
        tokenizer = Tokenizer.from_pretrained(path)
        template = ChatTemplate.from_pretrained(path, model_name=model_name, tokenizer=tokenizer)
        own = "the model's own" if template.name is None else f"built-in {template.name}"
        return {
            "tokenizer_size": tokenizer.vocab_size,
            "chat_format": "none" if template.is_plain else own,
            "stop_words": list(template.stop_words),
        }
    except TreadleError as error:
        return {"tokenizer_error": str(error)}


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _parameters(count: int) -> str:
    for unit, divisor in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if count >= divisor:
            return f"{count / divisor:.2f} {unit}"
    return str(count)


def _rope(facts: dict[str, Any]) -> str:
    text = f"{facts['rope']}, base {facts['rope_base']:g}"
    if facts["rope"] != "default":
        text += f", factor {facts['rope_factor']:g}"
        if facts["rope_original_len"]:
            text += f" beyond {facts['rope_original_len']} tokens"
    if facts["rotary_dim"] != facts["head_dim"]:
        text += f", first {facts['rotary_dim']} of {facts['head_dim']} dimensions"
    return text


def _features(facts: dict[str, Any]) -> str:
    present = {
        "QKV bias": facts["qkv_bias"],
        "output bias": facts["o_bias"],
        "MLP bias": facts["mlp_bias"],
        "QK norm": facts["qk_norm"],
        "tied embeddings": facts["tied_embeddings"],
        f"sliding window {facts['sliding_window']}": facts["sliding_window"],
        f"logn attention beyond {facts['logn_len']}": facts["logn_len"],
    }
    return ", ".join(name for name, there in present.items() if there) or "-"


def _kv_type(facts: dict[str, Any]) -> str:
    dtype: str = facts["kv_dtype"]
    return dtype + (", ranges of kv_qparams.safetensors" if facts["kv_static_ranges"] else "")


def _text_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    if "tokenizer_error" in facts:
        return [("tokenizer", facts["tokenizer_error"])]
    stops = " ".join(facts["stop_words"])
    return [
        ("tokenizer", f"{facts['tokenizer_size']} tokens"),
        ("chat format", facts["chat_format"] + (f", answers end at {stops}" if stops else "")),
    ]


def rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """(label, value) lines for people."""
    layers = (
        f"{facts['num_layers']} layers, hidden {facts['hidden_size']}, MLP "
        f"{facts['intermediate_size']}, vocabulary {facts['vocab_size']}"
    )
    heads = (
        f"{facts['num_heads']} heads of {facts['head_dim']}, {facts['num_kv_heads']} for keys and "
        "values"
    )
    weights = (
        f"{_parameters(facts['num_parameters'])} parameters, {facts['weight_dtype']}, "
        f"{_size(facts['weight_bytes'])} in memory ({facts['weight_files']} files, "
        f"{_size(facts['weight_file_bytes'])})"
    )
    pool = (
        f"{facts['kv_pool_tokens']} tokens ({facts['kv_blocks']} blocks, "
        f"{_size(facts['kv_pool_bytes'])})"
    )
    if facts["kv_blocks"] == 0:
        pool = "does not fit"
    return [
        ("model", f"{facts['architecture']} (family {facts['family']})"),
        ("sizes", layers),
        ("attention", heads),
        ("RoPE", _rope(facts)),
        ("features", _features(facts)),
        ("trained for", f"{facts['max_position_embeddings']} tokens"),
        ("weights", weights),
        *_text_rows(facts),
        (
            "device",
            facts["device"] + (f" ({facts['device_note']})" if facts["device_note"] else ""),
        ),
        ("end tokens", " ".join(map(str, facts["eos_token_ids"])) or "-"),
        ("KV cache", f"{_size(facts['kv_bytes_per_token'])} per token ({_kv_type(facts)})"),
        (
            "free memory",
            f"{_size(facts['free_bytes'])}, workspace {_size(facts['workspace_bytes'])}",
        ),
        ("would fit", f"{facts['tokens_that_fit']} tokens of KV cache beside the weights"),
        ("pool", f"{pool} with these options, sessions up to {facts['session_len']} tokens"),
    ]


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    config = options.engine_config(args, parser)
    facts = gather(options.model_path(args), args.model_name, config.to_native())
    if args.json:
        print(json.dumps(facts, ensure_ascii=False, indent=2))
    else:
        for label, value in rows(facts):
            print(f"{label:12} {value}")
    return 0
