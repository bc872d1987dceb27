"""What this build can run on, and the library that it loads for GPUs."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any


def build_info() -> dict[str, Any]:
    """Version, backends, and the GPUs of this machine: for each its ``device`` name, its ``name``
    and its ``problem``, why this build cannot run on it (empty when it can). ``problem`` beside
    them says why there are none."""
    from treadle import _engine

    report = _engine.gpus()
    return {
        "version": _engine.version(),
        "backends": _engine.backends().split(","),
        "gpus": [
            {"device": f"cuda:{i}", "name": name, "problem": problem}
            for i, (name, problem) in enumerate(report["gpus"])
        ],
        "problem": report["problem"],
    }


def load_library() -> None:
    """Loads cuBLASLt from its PyPI package, which torch brings, too, from anywhere on sys.path.

    The engine asks for it by name and looks beside itself; a package may also be in another
    site-packages. Does nothing where no GPU could use it."""
    from treadle import _engine

    report = _engine.gpus()
    if not report["gpus"]:
        return
    for folder in sys.path:
        packages = os.path.join(folder, "nvidia")
        if not os.path.isdir(packages):
            continue
        for package in sorted(os.listdir(packages), reverse=True):
            path = os.path.join(packages, package, "lib", report["library"])
            if os.path.exists(path):
                ctypes.CDLL(path)
                return
