"""Collects what a machine with a GPU needs of a build with -DTREADLE_CUDA=ON.

    python tools/gpu_suite_pack.py BUILD_DIR FOLDER

copies the stripped CUDA tests and benches, and libengine.a with the static CUDA runtime inside, so
that the Python extension can be linked there without compiling the engine again.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

#: Where CMake puts the CUDA tests and benches.
PROGRAM_FOLDERS = ("tests/cuda", "cuda", "bench/ops")
PROGRAM_NAMES = re.compile(r"\w+_test|cuda_\w+")


def programs(build: Path) -> list[Path]:
    """The executables that need a GPU."""
    return sorted(
        path
        for folder in PROGRAM_FOLDERS
        for path in (build / folder).glob("*")
        if path.is_file() and os.access(path, os.X_OK) and PROGRAM_NAMES.fullmatch(path.name)
    )


def cuda_runtime(build: Path) -> Path:
    """libcudart_static.a of the toolkit that the build used."""
    cache = (build / "CMakeCache.txt").read_text("utf-8")
    found = re.search(r"^CUDA_cudart_static_LIBRARY:FILEPATH=(.+)$", cache, re.MULTILINE)
    if found is None:
        sys.exit(f"{build} was not configured with -DTREADLE_CUDA=ON")
    return Path(found.group(1))


def merge(archives: list[Path], out: Path) -> None:
    """One static library with the members of all."""
    lines = [f"CREATE {out}", *(f"ADDLIB {path}" for path in archives), "SAVE", "END", ""]
    subprocess.run(["ar", "-M"], input="\n".join(lines), text=True, check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("build", type=Path)
    parser.add_argument("folder", type=Path, help="emptied first")
    parser.add_argument("--no-benches", action="store_true", help="tests and library only")
    args = parser.parse_args()
    shutil.rmtree(args.folder, ignore_errors=True)
    args.folder.mkdir(parents=True)
    found = programs(args.build)
    if args.no_benches:
        found = [path for path in found if path.name.endswith("_test")]
    if not found:
        sys.exit(f"no CUDA tests in {args.build}: configure with -DTREADLE_BUILD_TESTS=ON")
    for path in found:
        subprocess.run(["strip", "-o", args.folder / path.name, path], check=True)
    library = args.folder / "libengine.a"
    merge([args.build / "cpp" / "libengine.a", cuda_runtime(args.build)], library)
    subprocess.run(["strip", "--strip-debug", library], check=True)
    for path in sorted(args.folder.iterdir()):
        print(f"{path.stat().st_size / 1e6:7.1f} MB  {path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
