"""Where a step's time goes on a GPU: the time of every kernel, the clock and the power beside it.

    python -m bench.engine.gpu_profile [--model llama-3-8b] [--cases CASE ...] [--out DIR]

The same workloads as gpu_workloads, each run once to warm up and once under CUPTI (through
torch.profiler, which sees the kernels of the whole process). A case is prefill:TOKENS[xPROMPTS],
decode:BATCH[@CONTEXT] or requests. A kernel that is launched early waits inside for the one ahead,
so kernels' times add up to more than the GPU was busy. "added" is the part of a kernel's time after
the one ahead has ended; those parts add up to the time the GPU was busy. Of a decode case only what
follows the last prompt is counted.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from bench.engine.gpu_models import SHAPES, default_folder, prepare
from bench.engine.gpu_workloads import LENGTHS, Bench, greedy

CASES = ["prefill:8192", "prefill:1024x16", "decode:128", "decode:256", "requests"]


class Meter:
    """Clock (MHz) and power (W) of GPU 0 every 20 ms while the block runs, as nvidia-smi says."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def __enter__(self) -> Meter:
        query = "--query-gpu=clocks.sm,power.draw --format=csv,noheader,nounits -i 0 -lms 20"
        self._process = subprocess.Popen(
            ["nvidia-smi", *query.split()], stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        output, _unused = self._process.communicate()
        self._lines = output.splitlines()

    def seen(self) -> dict[str, float]:
        """Medians and extremes of the second half: it takes nvidia-smi a moment to begin."""
        samples = [line.split(",") for line in self._lines[len(self._lines) // 2 :]]
        numbers = [(float(s[0]), float(s[1])) for s in samples if len(s) == 2]
        if not numbers:
            return {}
        clocks, watts = zip(*numbers, strict=True)
        return {
            "clock_mhz_median": statistics.median(clocks),
            "clock_mhz_least": min(clocks),
            "power_w_median": statistics.median(watts),
            "power_w_most": max(watts),
        }


def short_name(name: str) -> str:
    """A kernel without its namespaces and argument list."""
    name = re.sub(r"\(anonymous namespace\)::|treadle::cuda::|^void ", "", name)
    name = name.split(">(")[0] + (">" if ">(" in name else "")
    return re.sub(r"\(.*", "", name)[:90]


def kernels(trace: Path) -> list[dict[str, Any]]:
    events = json.loads(trace.read_text())["traceEvents"]
    return [e for e in events if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]


def decode_steps(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those after the last prompt's attention in the last layer; of that step only its end."""
    prompts_end = max(e["ts"] + e["dur"] for e in events if "attention_prefill" in e["name"])
    return [event for event in events if event["ts"] > prompts_end]


def summarise(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Milliseconds by kernel, and from the first begin to the last end."""
    times: dict[str, list[float]] = defaultdict(list)
    added_by: dict[str, float] = defaultdict(float)
    begin = min(event["ts"] for event in events)
    end = begin
    busy = 0.0
    for event in sorted(events, key=lambda e: float(e["ts"])):
        name = short_name(event["name"])
        stop = event["ts"] + event["dur"]
        times[name].append(event["dur"])
        added = max(0.0, stop - max(event["ts"], end))
        added_by[name] += added
        busy += added
        end = max(end, stop)
    rows = [
        {"kernel": name, "calls": len(t), "ms": sum(t) / 1e3, "added_us": added_by[name] / len(t)}
        for name, t in times.items()
    ]
    rows.sort(key=lambda row: -added_by[str(row["kernel"])])
    return {"span_ms": (end - begin) / 1e3, "busy_ms": busy / 1e3, "kernels": rows}


def workload(bench: Bench, case: str) -> None:
    kind, _, size = case.partition(":")
    if kind == "prefill":
        tokens, _, prompts = size.partition("x")
        bench.seconds([int(tokens)] * int(prompts or 1), 1)
    elif kind == "decode":
        batch, _, context = size.partition("@")
        bench.seconds([int(context or 128)] * int(batch), 64)
    else:
        lengths = json.loads(LENGTHS.read_text())["lengths"]
        prompts_ = [bench.prompt(length) for length, _ in lengths]
        configs = [greedy(output) for _, output in lengths]
        list(bench.engine.create_instance().stream_infer(None, prompts_, configs))


def profile(bench: Bench, case: str) -> dict[str, Any]:
    workload(bench, case)
    began = time.perf_counter()
    with Meter() as meter:
        workload(bench, case)
        if case != "requests":  # long enough to see the clock
            while time.perf_counter() - began < 1.5:
                workload(bench, case)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        workload(bench, case)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = kernels(trace)
        found = summarise(decode_steps(events) if case.startswith("decode") else events)
    return {"case": case, **meter.seen(), **found}


def table(found: dict[str, Any], most: int = 16) -> str:
    lines = [
        f"### {found['case']}: {found['span_ms']:.2f} ms, GPU busy {found['busy_ms']:.2f} ms; "
        f"{found.get('clock_mhz_median', 0):.0f} MHz, {found.get('power_w_median', 0):.0f} W",
        "",
        "| kernel | calls | added ms | added us each | its own us |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| `{row['kernel']}` | {row['calls']} | {row['added_us'] * row['calls'] / 1e3:.2f} "
        f"| {row['added_us']:.1f} | {1e3 * row['ms'] / row['calls']:.1f} |"
        for row in found["kernels"][:most]
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=SHAPES, default="llama-3-8b")
    parser.add_argument("--dtype", choices=["float16", "bfloat16"], default="float16")
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--models", type=Path, default=default_folder(), help="where weights lie")
    parser.add_argument("--out", type=Path, help="folder for the results (.json and .md)")
    args = parser.parse_args()
    torch.cuda.init()  # type: ignore[no-untyped-call]
    path = prepare(args.models, args.model, args.dtype)
    options = {"device": "cuda", "max_batch_size": 256, "session_len": 20480}
    bench = Bench(args.model, path, options | {"enable_prefix_caching": False}, repeats=1)
    results = []
    for case in args.cases:
        results.append(profile(bench, case))
        print(table(results[-1]), flush=True)
    bench.close()
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        stem = args.out / f"profile-{args.model}-{args.dtype}"
        stem.with_suffix(".json").write_text(json.dumps(results, indent=1))
        stem.with_suffix(".md").write_text("\n".join(map(table, results)))


if __name__ == "__main__":
    main()
