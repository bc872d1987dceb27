"""The PEP 517 build backend: scikit-build-core, with one more requirement where CUDA is built.

The CUDA backend is compiled when nvcc is there, and needs cuBLASLt's header for it. A toolkit may
come without; then the header is in a PyPI package of several hundred megabytes, which a build for
the CPU must not download. So it is asked for only where it will be used.

Run as a program, prints that requirement, or nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from scikit_build_core import build as _build
from scikit_build_core.build import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

Settings = Mapping[str, str | list[str]]

#: CMake's spellings of "no", see cmake/TreadleCuda.cmake.
_OFF = {"OFF", "0", "FALSE", "NO", "N"}


def wanted(settings: Settings) -> bool:
    """Whether -C cmake.define.TREADLE_CUDA or the environment leaves CUDA on."""
    for prefix in ("", "skbuild."):
        given = settings.get(f"{prefix}cmake.define.TREADLE_CUDA")
        if given is not None:
            return str(given[-1] if isinstance(given, list) else given).upper() not in _OFF
    return os.environ.get("TREADLE_CUDA", "AUTO").upper() not in _OFF


def find_nvcc() -> Path | None:
    """Where CMake will find it, see cmake/TreadleCuda.cmake."""
    named = os.environ.get("CUDACXX")
    if named:
        found = shutil.which(named)
    else:
        homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
        places = [os.path.join(home, "bin") for home in homes if home]
        found = shutil.which("nvcc") or shutil.which("nvcc", path=os.pathsep.join(places))
    return Path(found).resolve() if found else None


def ask(nvcc: Path, *options: str) -> str:
    """What nvcc says; nothing where it cannot be run."""
    try:
        done = subprocess.run([nvcc, *options], capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout + done.stderr


def release(nvcc: Path) -> int | None:
    """Major version of the toolkit."""
    match = re.search(r"release (\d+)\.", ask(nvcc, "--version"))
    return int(match[1]) if match else None


def site_folders() -> set[str]:
    """Where Python packages are. An isolated build's sys.path lacks the interpreter's own."""
    return {*sys.path, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}


def has_header(nvcc: Path, major: int) -> bool:
    """Whether cublasLt.h is in the toolkit, or in a package of the interpreter's installation."""
    # nvcc on PATH may be a script that calls the toolkit's.
    top = re.search(r"TOP=(.+)", ask(nvcc, "--dryrun", "-c", "-x", "cu", os.devnull))
    toolkit = Path(top[1].strip()) if top else nvcc.parent.parent
    folders = [toolkit / "include", *toolkit.glob("targets/*/include")]
    for site in site_folders():
        folders += [Path(site, "nvidia", name, "include") for name in (f"cu{major}", "cublas")]
    return any((folder / "cublasLt.h").exists() for folder in folders)


def cuda_requirements(settings: Settings | None = None) -> list[str]:
    """What to install so that the CUDA backend can be compiled."""
    nvcc = find_nvcc() if wanted(settings or {}) else None
    major = release(nvcc) if nvcc else None
    if nvcc is None or major is None or has_header(nvcc, major):
        return []
    if major < 13:
        return [f"nvidia-cublas-cu{major}"]
    return [f"nvidia-cublas>={major},<{major + 1}"]


def get_requires_for_build_wheel(
    config_settings: dict[str, str | list[str]] | None = None,
) -> list[str]:
    return [
        *_build.get_requires_for_build_wheel(config_settings),
        *cuda_requirements(config_settings),
    ]


def get_requires_for_build_editable(
    config_settings: dict[str, str | list[str]] | None = None,
) -> list[str]:
    return [
        *_build.get_requires_for_build_editable(config_settings),
        *cuda_requirements(config_settings),
    ]


if __name__ == "__main__":
    print("\n".join(cuda_requirements()))
