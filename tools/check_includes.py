"""Checks that the C++ folders depend on each other in one direction, and that every file is built.

    engine -> loader, scheduler, batch, model, sampler, request -> kv, ops -> nothing

Run from anywhere; prints each violation as file:line and exits with 1 if there are any.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "cpp" / "src"
PUBLIC = ROOT / "cpp" / "include" / "treadle"
PUBLIC_LINE_LIMIT = 1000

# Folder -> folders it may include besides its own. The middle ones may know each other as long as
# no circle forms (checked below).
MIDDLE = {"scheduler", "batch", "model", "sampler", "request"}
ALLOWED = {
    "ops": set[str](),
    "ops/cpu": {"ops"},
    "kv": {"ops"},
    "loader": {"model", "ops"},
    "engine": MIDDLE | {"loader", "kv", "ops"},
    **{name: (MIDDLE - {name}) | {"kv", "ops"} for name in MIDDLE},
}

INCLUDE = re.compile(r'^\s*#\s*include\s*(["<])([^">]+)[">]')
CONDITIONAL = re.compile(r"^\s*#\s*(if|ifdef|ifndef|elif)\b(.*)")
# In a public header no build flag may change what the reader sees; export.h is the one exception.
DEVICE_WORDS = re.compile(r"\b(cuda_runtime|cudaStream_t|torch|ATen|__CUDACC__|nlohmann)\b")

Problem = tuple[Path, int, str]


def folder_of(relative: str) -> str:
    """The folder of ALLOWED that a path below cpp/src lies in."""
    return "ops/cpu" if relative.startswith("ops/cpu/") else relative.split("/", 1)[0]


def includes(path: Path) -> Iterator[tuple[int, str, str]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if match := INCLUDE.match(line):
            yield number, match[1], match[2]


def sources(folder: Path, *suffixes: str) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix in suffixes)


def check_layers(edges: dict[str, set[str]]) -> Iterator[Problem]:
    """Every include of cpp/src; fills `edges` with the folders each folder includes."""
    for path in sources(SRC, ".h", ".cc"):
        folder = folder_of(path.relative_to(SRC).as_posix())
        if folder not in ALLOWED:
            yield path, 1, f"folder '{folder}' has no place in tools/check_includes.py"
            continue
        for number, quote, name in includes(path):
            if quote != '"' or name.startswith("treadle/"):
                continue
            if not (SRC / name).exists():
                yield path, number, f'"{name}" is not a path below cpp/src'
                continue
            target = folder_of(name)
            if target != folder:
                edges.setdefault(folder, set()).add(target)
                if target not in ALLOWED[folder]:
                    yield path, number, f"{folder}/ must not include {target}/ ({name})"


def find_cycle(edges: dict[str, set[str]]) -> list[str]:
    """Folders of one circle, first repeated last; empty when there is none."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node not in done:
            for target in sorted(edges.get(node, ())):
                if cycle := visit(target, [*path, node]):
                    return cycle
            done.add(node)
        return []

    return next((cycle for node in sorted(edges) if (cycle := visit(node, []))), [])


def check_cuda() -> Iterator[Problem]:
    cuda = ROOT / "cuda"
    for path in sources(cuda, ".h", ".cuh", ".cc", ".cu"):
        for number, quote, name in includes(path):
            inside = (cuda / name).exists() or (path.parent / name).exists()
            allowed = re.fullmatch(r"ops/[^/]+\.h", name) or name.startswith("treadle/error.h")
            if quote == '"' and not inside and not allowed:
                yield path, number, f"cuda/ may include ops/*.h alone of cpp/src, not {name}"


def check_public() -> Iterator[Problem]:
    lines = 0
    for path in [*sources(PUBLIC, ".h"), PUBLIC / "version.h.in"]:
        text = path.read_text(encoding="utf-8").splitlines()
        lines += len(text)
        for number, quote, name in includes(path):
            if quote == '"' and not name.startswith("treadle/"):
                yield path, number, f"a public header may not include {name}"
        for number, line in enumerate(text, 1):
            if match := DEVICE_WORDS.search(line):
                yield path, number, f"'{match[1]}' has no place in a public header"
            if path.name != "export.h" and CONDITIONAL.match(line):
                yield path, number, "a public header must not depend on build flags"
    if lines > PUBLIC_LINE_LIMIT:
        yield PUBLIC, 0, f"public headers have {lines} lines; the limit is {PUBLIC_LINE_LIMIT}"


def check_listed() -> Iterator[Problem]:
    """A source that no CMakeLists.txt names would silently stay out of the library."""
    for path in sources(SRC, ".cc"):
        cmake = path.parent / "CMakeLists.txt"
        listed = cmake.read_text(encoding="utf-8") if cmake.exists() else ""
        if not re.search(rf"(?m)(^|\s){re.escape(path.name)}(\s|\)|$)", listed):
            yield path, 1, f"is not listed in {cmake.relative_to(ROOT)}"


def main() -> int:
    edges: dict[str, set[str]] = {}
    problems = [*check_layers(edges), *check_cuda(), *check_public(), *check_listed()]
    for path, number, message in problems:
        print(f"{path.relative_to(ROOT)}:{number}: {message}")
    cycle = find_cycle(edges)
    if cycle:
        print(f"cpp/src: folders include each other in a circle: {' -> '.join(cycle)}")
    if problems or cycle:
        return 1
    print("include directions: no problem found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
