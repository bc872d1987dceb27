"""The installed C++ library, used by programs outside the tree, and the wheel made from an sdist.

The library is built in build/release (the `release` preset), where `make test` has built it before,
and installed into a temporary prefix that is then moved: nothing may remember where it was.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

pytestmark = pytest.mark.install

ROOT = Path(__file__).resolve().parents[2]
CONSUMER = Path(__file__).resolve().parent / "consumer"
DEMO = ROOT / "python" / "treadle" / "demo"
PROMPT = "浙江的省会在哪?"
WHEEL_LIMIT = 30 * 1000 * 1000


def run(*command: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Output of a command that must succeed; `env` is added to the environment."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def need(tool: str) -> str:
    path = shutil.which(tool)
    if path is None:
        pytest.skip(f"{tool} is not installed")
    return path


def demo_tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(DEMO / "tokenizer.json"))


def decode(ids: Iterable[int | str]) -> str:
    return demo_tokenizer().decode([int(i) for i in ids])


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installed tree that does not lie where it was installed to."""
    base = tmp_path_factory.mktemp("install")
    run("cmake", "--preset", "release", cwd=ROOT)
    run("cmake", "--build", "--preset", "release", cwd=ROOT)
    run("cmake", "--install", ROOT / "build" / "release", "--prefix", base / "first")
    return (base / "first").rename(base / "moved")


@pytest.fixture(scope="module")
def libdir(prefix: Path) -> Path:
    return next(prefix.rglob("libengine.a")).parent


@pytest.fixture(scope="module")
def prompt_ids() -> list[int]:
    text = f"<s><|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
    return list(demo_tokenizer().encode(text, add_special_tokens=False).ids)


def check_output(program: Path, prompt_ids: list[int], env: dict[str, str] | None = None) -> None:
    """The program streams the model's answer, keeps the session and gets a typed error."""
    lines = run(program, DEMO, *prompt_ids, env=env).splitlines()
    turns: list[list[int]] = [[]]
    outputs = 0
    ends: list[list[str]] = []
    for line in lines[:-1]:
        kind, *values = line.split()
        if kind == "ids":
            turns[-1] += [int(v) for v in values]
            outputs += 1
        else:
            assert kind == "end", line
            ends.append(values)
            turns.append([])
    assert "杭州" in decode(turns[0])
    assert len(ends) == 2
    assert ends[0][1] == str(len(prompt_ids))
    # History of the first turn, its answer and the one id that was sent.
    assert len(prompt_ids) < int(ends[1][1]) <= len(prompt_ids) + len(turns[0]) + 2
    assert lines[-1] == "error invalid_argument"


def test_find_package(prefix: Path, tmp_path: Path, prompt_ids: list[int]) -> None:
    run("cmake", "-S", CONSUMER, "-B", tmp_path, f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", tmp_path)
    for variant in ("engine", "engine_static"):
        check_output(tmp_path / f"consumer_{variant}", prompt_ids)


def test_find_package_refuses_another_version(prefix: Path, tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.21)\nproject(p LANGUAGES CXX)\n"
        "find_package(treadle 99.0 REQUIRED)\n"
    )
    done = subprocess.run(
        ["cmake", "-S", tmp_path, "-B", tmp_path / "b", f"-DCMAKE_PREFIX_PATH={prefix}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "99.0" in done.stderr


@pytest.mark.parametrize("static", [False, True])
def test_pkg_config(
    static: bool, prefix: Path, libdir: Path, tmp_path: Path, prompt_ids: list[int]
) -> None:
    tool = need("pkg-config")
    env = {"PKG_CONFIG_PATH": str(libdir / "pkgconfig")}
    options = ["--cflags", "--libs", *(["--static"] if static else [])]
    flags = run(tool, *options, "treadle", env=env).split()
    folders = [Path(f[2:]).resolve() for f in flags if f.startswith(("-I", "-L"))]
    assert folders == [(prefix / "include").resolve(), libdir.resolve()]
    if static:
        assert "-pthread" in flags
        flags = [str(libdir / "libengine.a") if f == "-lengine" else f for f in flags]
    program = tmp_path / "consumer"
    compiler = os.environ.get("CXX", "c++")
    run(compiler, "-std=c++20", CONSUMER / "main.cc", "-o", program, *flags)
    check_output(program, prompt_ids, env={"LD_LIBRARY_PATH": str(libdir)})


def test_example(prefix: Path, tmp_path: Path, prompt_ids: list[int]) -> None:
    source = ROOT / "examples" / "cpp"
    run("cmake", "-S", source, "-B", tmp_path, f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", tmp_path)
    assert "杭州" in decode(run(tmp_path / "stream_tokens", DEMO, *prompt_ids).split())


def test_shared_library(libdir: Path) -> None:
    """A versioned soname, and no symbol exported that is neither ours nor the language's."""
    if platform.system() != "Linux":
        pytest.skip("ELF only")
    library = libdir / "libengine.so"
    dynamic = run(need("readelf"), "-d", library)
    assert "Library soname: [libengine.so.0.1]" in dynamic
    assert (libdir / "libengine.so.0.1").is_symlink()
    exported = run(need("nm"), "-DC", "--defined-only", library).splitlines()
    strong = [line.split(maxsplit=2)[2] for line in exported if line.split()[1] in "TBDR"]
    assert any(name.startswith("treadle::Engine::load") for name in strong)
    assert [name for name in strong if not name.startswith("treadle::")] == []


def test_vector_files_share_no_code(prefix: Path) -> None:
    """A file built for AVX must not define what the linker may pick for the plain build as well.

    An inline function or template instance that is not local to the file is a weak symbol: if the
    AVX copy is the one that is kept, plain code runs it on processors that lack AVX. Templates over
    the instruction set (Avx2, Avx512) are safe, as the name keeps them apart.
    """
    objects = sorted((ROOT / "build" / "release").rglob("*_avx*.cc.o"))
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("x86-64 only")
    assert objects
    for path in objects:
        symbols = run(need("nm"), "-C", "--defined-only", path).splitlines()
        weak = [s for s in symbols if len(s.split()) > 1 and s.split()[1] in "WVu"]
        assert [s for s in weak if "Avx" not in s] == [], path


def test_headers_stand_alone(prefix: Path) -> None:
    """Each public header compiles as the first include, with warnings as errors."""
    for header in sorted((prefix / "include" / "treadle").glob("*.h")):
        run(
            os.environ.get("CXX", "c++"), "-std=c++20", "-fsyntax-only", "-Wall", "-Wextra",
            "-Wpedantic", "-Werror", "-x", "c++", f"-I{prefix / 'include'}", "-include",
            f"treadle/{header.name}", os.devnull,
        )  # fmt: skip


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sdist")
    run(
        sys.executable,
        "-c",
        f"from build_backend import build_sdist; build_sdist({str(out)!r})",
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT / "tools")},
    )
    return next(out.glob("treadle-*.tar.gz"))


def test_sdist_content(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    for name in (
        "CMakeLists.txt",
        "LICENSE",
        "README.md",
        "cmake/TreadleCuda.cmake",
        "cpp/include/treadle/engine.h",
        "cuda/ops_cuda.cc",
        "python/treadle/__init__.py",
        "python/treadle/py.typed",
        "python/treadle/demo/model.safetensors",
        "tools/build_backend.py",
    ):
        assert name in names
    assert not [n for n in names if n.startswith(("build/", ".venv/")) or n.endswith((".so", ".o"))]


def test_wheel_from_sdist(sdist: Path, tmp_path: Path) -> None:
    """The wheel made from the sdist alone is small, complete, and chats in a clean environment."""
    run(
        sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation",
        "-w", tmp_path, sdist,
        env={"TREADLE_CUDA": "OFF"},
    )  # fmt: skip
    wheel = next(tmp_path.glob("treadle-*.whl"))
    assert wheel.stat().st_size < WHEEL_LIMIT
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert any(n.startswith("treadle/_engine.") for n in names)
    for name in ("treadle/py.typed", "treadle/_engine.pyi", "treadle/demo/model.safetensors"):
        assert name in names
    assert [n for n in names if not n.startswith("treadle")] == []

    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", venv)
    run(venv / "bin" / "pip", "install", "--quiet", wheel)
    modules = json.loads(
        run(
            venv / "bin" / "python",
            "-c",
            "import json, sys, treadle; print(json.dumps(sorted(sys.modules)))",
        )
    )
    assert "treadle" in modules
    assert not {"torch", "transformers"} & set(modules)
    version = run(venv / "bin" / "treadle", "--version")
    assert wheel.name.split("-")[1] in version
