"""What a result has to say about where it was measured."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "treadle",
    "llama-cpp-python",
    "ctranslate2",
    "transformers",
    "torch",
    "gguf",
    "numpy",
    "safetensors",
    "tokenizers",
)


def has(package: str) -> bool:
    """Whether `package` is installed."""
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def cores() -> int:
    """The CPUs this process may use."""
    return len(os.sched_getaffinity(0))


def load() -> list[float]:
    """Load averages over 1, 5 and 15 minutes."""
    return [round(x, 2) for x in os.getloadavg()]


def describe() -> dict[str, object]:
    """CPU model, family, cores, caches and vector extensions, memory, kernel, load."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    fields = dict(re.findall(r"^(.+?)\s*: (.*)$", cpuinfo, re.MULTILINE))
    name = fields.get("model name", platform.machine())
    memory = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    flags = [f for f in fields.get("flags", "").split() if re.match(r"avx|amx|fma|f16c", f)]
    slug = re.sub(r"[^a-z0-9]+", "-", f"{name}-{cores()}c".lower()).strip("-")
    return {
        "cpu": name,
        "family_model_stepping": [fields.get(k) for k in ("cpu family", "model", "stepping")],
        "cores": cores(),
        "cache": fields.get("cache size"),
        "vector_flags": flags,
        "memory_gb": round(int(memory.group(1)) / 1e6, 1) if memory else None,
        "system": f"{platform.system()} {platform.release()}",
        "load_before": load(),
        "slug": slug,
    }


def commit(repository: Path) -> str:
    """The commit that was measured, marked where files differ from it."""

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", *args], cwd=repository, capture_output=True, text=True, check=False
        ).stdout.strip()

    dirty = git("status", "--porcelain", "--untracked-files=no")
    return (git("rev-parse", "HEAD") or "unknown") + ("+changes" if dirty else "")


def command(argv: list[str]) -> str:
    """The command line without the machine's own paths."""
    shown = [Path(a).name if os.path.isabs(a) else a for a in argv[1:]]
    return "python -m bench.engine.compare " + shlex.join(shown)
