"""How the figures of gpu_workloads.py are shown, and what they say about the GPU."""

from __future__ import annotations

import re
import subprocess
from typing import Any


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"


def table_line(row: dict[str, Any]) -> str:
    """A row of the Markdown table; the extras that explain a figure follow it."""
    met = {None: "", True: "yes", False: "NO"}[row["met"]]
    peers = [number(row[peer]) for peer in ("vllm", "turbomind")]
    extras = {
        key: round(row[key], 2)
        for key in ("tokens_per_second", "host_us", "gigabytes", "p50_ms", "p99_ms", "wall_s")
        if key in row
    }
    note = ", ".join(f"{key} {value}" for key, value in extras.items())
    figure = f"{number(row['value'])} {row['unit']}"
    return f"| {' | '.join([row['case'], figure, *peers, number(row['target']), met, note])} |"


COLUMNS = ["case", "ours", "vLLM 0.24.0", "TurboMind 0.18.0", "target", "met", ""]
HEADER = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


def describe_gpu() -> dict[str, str]:
    """Name, driver, power limit and the driver's CUDA, as nvidia-smi tells them."""
    fields = ["name", "driver_version", "power.limit", "memory.total"]
    try:
        query = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
        values = subprocess.run(query, capture_output=True, text=True, check=True).stdout
        found = dict(zip(fields, values.splitlines()[0].split(", "), strict=True))
        smi = subprocess.run(["nvidia-smi"], capture_output=True, text=True, check=True).stdout
        version = re.search(r"CUDA Version: (\S+)", smi)
        return found | {"cuda": version.group(1) if version else "unknown"}
    except (OSError, subprocess.CalledProcessError) as error:
        return {"name": f"unknown: {error}"}
