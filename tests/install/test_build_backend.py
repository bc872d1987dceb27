"""When an isolated build asks for cuBLASLt's package: several hundred megabytes, so only where CUDA
will be compiled and the toolkit lacks the header."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def backend() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_backend", TOOLS / "build_backend.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def toolkit(tmp_path: Path, backend: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CUDA 13 toolkit without cuBLAS, called by a script that lies elsewhere, and a Python that
    lacks the package."""
    home = tmp_path / "toolkit"
    script = tmp_path / "bin" / "nvcc"
    script.parent.mkdir()
    script.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then echo "Cuda compilation tools, release 13.0"; exit; fi\n'
        f'echo "#$ TOP={home}" >&2\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("CUDACXX", str(script))
    monkeypatch.delenv("TREADLE_CUDA", raising=False)
    monkeypatch.setattr(backend, "site_folders", lambda: {str(tmp_path / "site")})
    return home


def header(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "cublasLt.h").touch()


def test_asks_where_the_header_is_missing(backend: ModuleType, toolkit: Path) -> None:
    wanted = "nvidia-cublas>=13,<14"
    assert backend.cuda_requirements() == [wanted]
    assert wanted in backend.get_requires_for_build_wheel({})
    assert wanted in backend.get_requires_for_build_editable(None)


@pytest.mark.parametrize("folder", ["include", "targets/x86_64-linux/include"])
def test_does_not_ask_where_the_toolkit_has_it(
    backend: ModuleType, toolkit: Path, folder: str
) -> None:
    header(toolkit / folder)
    assert backend.cuda_requirements() == []


def test_does_not_ask_where_python_has_it(backend: ModuleType, toolkit: Path) -> None:
    header(toolkit.parent / "site" / "nvidia" / "cu13" / "include")
    assert backend.cuda_requirements() == []


def test_older_toolkits_have_another_package(
    backend: ModuleType, toolkit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "release", lambda _: 12)
    assert backend.cuda_requirements() == ["nvidia-cublas-cu12"]


def test_does_not_ask_where_cuda_is_off(
    backend: ModuleType, toolkit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert backend.cuda_requirements({"cmake.define.TREADLE_CUDA": "OFF"}) == []
    assert backend.cuda_requirements({"cmake.define.TREADLE_CUDA": ["ON", "off"]}) == []
    assert backend.cuda_requirements({"cmake.define.TREADLE_CUDA": "ON"}) != []
    monkeypatch.setenv("TREADLE_CUDA", "0")
    assert backend.cuda_requirements() == []


def test_does_not_ask_without_nvcc(
    backend: ModuleType, toolkit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDACXX", str(toolkit / "nowhere"))
    assert backend.cuda_requirements() == []
