"""What a prompt's matrix products and attention take with cuBLAS and cuDNN, at the power limit.

    python -m bench.engine.gpu_ceiling [--model llama-3-8b] [--dtype float16] [--out FILE]

runs the four products of every layer of a prompt, with weights of their own, and causal attention
through torch, for some seconds each and without anything between them: no norm, no activation, no
RoPE, no KV pool. An engine that is faster than the sum has better kernels, or spends less energy on
them; a GPU at its power limit takes its clock down until the two are the same. What of it is
products alone is an upper bound for how fast an engine with this library's products can be.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.engine.gpu_models import COMMON, SHAPES, STD
from bench.engine.gpu_profile import Meter

#: (tokens, prompts), the prompts of gpu_workloads. Engines compute at most 8192 tokens at once.
PROMPTS = [(512, 1), (2048, 1), (8192, 1), (16384, 1), (1024, 16)]
STEP = 8192
SECONDS = 1.5


def under_load(body: Callable[[], None]) -> tuple[float, dict[str, float]]:
    """Milliseconds of one call of many in a row, and clock and power meanwhile."""
    body()
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    with Meter() as meter:
        started = time.perf_counter()
        while time.perf_counter() - started < SECONDS:
            begin.record()
            body()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
    late = sorted(times[len(times) // 2 :])  # the clock has settled
    return late[len(late) // 2], meter.seen()


class Prompt:
    """The products and the attention of one prompt case, layer after layer."""

    def __init__(self, shape: dict[str, Any], dtype: torch.dtype, tokens: int, prompts: int):
        hidden, layers = COMMON["hidden_size"], COMMON["num_hidden_layers"]
        heads, kv_heads = COMMON["num_attention_heads"], shape["num_key_value_heads"]
        inter, dim = shape["intermediate_size"], COMMON["head_dim"]
        self.tokens, self.prompts, self.layers = tokens, prompts, layers
        self.sizes = [
            ((heads + 2 * kv_heads) * dim, hidden),
            (hidden, heads * dim),
            (2 * inter, hidden),
            (hidden, inter),
        ]
        place: dict[str, Any] = {"device": "cuda", "dtype": dtype}
        self.weights = [
            [torch.randn(size, **place) * STD for size in self.sizes] for _ in range(layers)
        ]
        rows = min(tokens * prompts, STEP)
        self.steps = tokens * prompts // rows
        self.inputs = [torch.randn(rows, k, **place) for _, k in self.sizes]
        self.outputs = [torch.empty(rows, n, **place) for n, _ in self.sizes]
        at_once = max(1, rows // tokens)
        self.attention_calls = prompts // at_once
        self.q = torch.randn(at_once, heads, tokens, dim, **place)
        self.k, self.v = (torch.randn(at_once, kv_heads, tokens, dim, **place) for _ in range(2))

    def products(self) -> None:
        for _ in range(self.steps):
            for layer in self.weights:
                for x, w, y in zip(self.inputs, layer, self.outputs, strict=True):
                    torch.mm(x, w.T, out=y)

    def attention(self) -> None:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            for _ in range(self.layers * self.attention_calls):
                torch.nn.functional.scaled_dot_product_attention(
                    self.q, self.k, self.v, is_causal=True, enable_gqa=True
                )

    def both(self) -> None:
        self.products()
        self.attention()

    def tflop(self) -> float:
        """Of the products, for all of the case's tokens."""
        per_token = 2 * sum(n * k for n, k in self.sizes) * self.layers
        return float(per_token * self.tokens * self.prompts) / 1e12


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=["llama-3-8b", "llama-2-7b"], default="llama-3-8b")
    parser.add_argument("--dtype", choices=["float16", "bfloat16"], default="float16")
    parser.add_argument("--out", type=Path, help="file for the results (.json)")
    args = parser.parse_args()
    found = []
    print("| prompt | products | TFLOP/s | with attention | MHz | W |\n|---|---|---|---|---|---|")
    for tokens, prompts in PROMPTS:
        case = Prompt(SHAPES[args.model], getattr(torch, args.dtype), tokens, prompts)
        products, _ = under_load(case.products)
        both, seen = under_load(case.both)
        name = f"{prompts} x {tokens}" if prompts > 1 else str(tokens)
        found.append({"prompt": name, "products_ms": products, "both_ms": both, **seen})
        print(
            f"| {name} | {products:.1f} ms | {case.tflop() / products * 1e3:.0f} | {both:.1f} ms "
            f"| {seen.get('clock_mhz_median', 0):.0f} | {seen.get('power_w_median', 0):.0f} |",
            flush=True,
        )
        del case
        torch.cuda.empty_cache()
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
