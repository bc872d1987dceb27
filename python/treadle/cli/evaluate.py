"""``treadle eval``: quality of a model on a text."""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

from treadle.cli import options
from treadle.errors import InvalidArgumentError
from treadle.texts import check_text, read_texts


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from treadle import evaluation

    try:
        evaluation.check_window(args.window, args.stride)
    except InvalidArgumentError as error:
        parser.error(str(error))
    config = options.engine_config(args, parser)
    options.check_input("text", args.text)
    options.check_output("json", args.json)
    check_text(args.text)
    with options.load_engine(args, config) as engine:
        if args.text.endswith(".jsonl"):
            texts = read_texts(args.text)
            result = evaluation.perplexity(engine, texts, args.window, args.stride)
        else:
            with open(args.text, encoding="utf-8-sig", newline="") as file:
                result = evaluation.perplexity(engine, file, args.window, args.stride)
        facts = {
            "path": engine.path,
            "text": args.text,
            "device": engine.info.device,
            "kv_dtype": engine.info.kv_dtype,
            "quant_policy": 8 if engine.info.kv_dtype == "int8" else 0,
            "kv_static_ranges": engine.info.kv_static_ranges,
            "window": result.window,
            "stride": result.stride,
            "tokens": result.tokens,
            "mean_nll": result.mean_nll,
            "perplexity": result.perplexity,
            "tokens_per_second": result.tokens_per_second,
        }
    print(f"window       {result.window} tokens, stride {result.stride}")
    print(f"tokens       {result.tokens}")
    print(f"mean NLL     {result.mean_nll:.6f}")
    print(f"perplexity   {result.perplexity:.4f}")
    print(f"speed        {result.tokens_per_second:.0f} tok/s")
    if args.json is not None:
        _write_json(args.json, facts)
    return 0


def _write_json(path: str, facts: dict[str, Any]) -> None:
    """JSON has no infinity: it becomes null."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in facts.items()
    }
    with open(path, "w", encoding="utf-8") as file:
        json.dump(finite, file, ensure_ascii=False, indent=2)
        file.write("\n")
