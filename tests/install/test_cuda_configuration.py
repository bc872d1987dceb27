"""When CMake builds the CUDA backend, and what it says when it cannot. nvcc is a script here that
answers two questions; nothing is compiled with it."""

from __future__ import annotations

import os
import subprocess
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.install

ROOT = Path(__file__).resolve().parents[2]


class Project:
    """The project, configured with a toolkit of the test's own and a Python without packages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.toolkit = folder / "toolkit"
        self.nvcc = folder / "nvcc"
        venv.create(folder / "venv", symlinks=True)

    def write_nvcc(self, release: str) -> None:
        self.nvcc.write_text(
            "#!/bin/sh\n"
            f'if [ "$1" = --version ]; then echo "compilation tools, release {release}"; exit; fi\n'
            f'echo "#$ TOP={self.toolkit}" >&2\n'
        )
        self.nvcc.chmod(0o755)

    def write_header(self) -> None:
        (self.toolkit / "include").mkdir(parents=True)
        (self.toolkit / "include" / "cublasLt.h").touch()

    def configure(self, *options: str) -> tuple[bool, str]:
        """Whether it went well, and what was said, with lines joined."""
        done = subprocess.run(
            [
                "cmake", "--no-warn-unused-cli", "-S", ROOT, "-B", self.folder / "build",
                f"-DPython_EXECUTABLE={self.folder / 'venv' / 'bin' / 'python'}",
                f"-DTREADLE_JSON_INCLUDE_DIR={self.folder}", *options,
            ],
            env={**os.environ, "CUDACXX": str(self.nvcc)},
            capture_output=True,
            text=True,
        )  # fmt: skip
        return done.returncode == 0, " ".join((done.stdout + done.stderr).split())


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    for name in ("TREADLE_CUDA", "TREADLE_CUDA_ARCHS", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    return Project(tmp_path)


def test_without_nvcc(project: Project) -> None:
    ok, said = project.configure()
    assert ok
    assert "CUDA backend: not built" in said
    ok, said = project.configure("-DTREADLE_CUDA=ON")
    assert not ok
    assert "TREADLE_CUDA is ON, but" in said


@pytest.mark.parametrize(
    ("release", "package"), [("13.0", "nvidia-cublas"), ("12.8", "nvidia-cublas-cu12")]
)
def test_without_the_header(project: Project, release: str, package: str) -> None:
    if any(Path(p, "cublasLt.h").exists() for p in ("/usr/include", "/usr/local/include")):
        pytest.skip("the system has cublasLt.h")
    project.write_nvcc(release)
    ok, said = project.configure()
    assert ok
    assert "CMake Warning" in said
    ok, error = project.configure("-DTREADLE_CUDA=ON")
    assert not ok
    for text in (said, error):
        assert "cublasLt.h was found neither" in text
        assert f"`pip install {package}`" in text


def test_too_old_a_toolkit(project: Project) -> None:
    project.write_nvcc("11.8")
    project.write_header()
    ok, said = project.configure()
    assert ok
    assert "is CUDA 11.8, but 12.4 or newer is needed" in said


@pytest.mark.parametrize(
    ("archs", "message"), [("80;75", "holds '75'; the kernels need 80"), ("sm_90", "holds 'sm_90'")]
)
def test_architectures_are_checked(project: Project, archs: str, message: str) -> None:
    project.write_nvcc("13.0")
    project.write_header()
    ok, said = project.configure(f"-DTREADLE_CUDA_ARCHS={archs}")
    assert not ok
    assert message in said


def test_off(project: Project) -> None:
    project.write_nvcc("13.0")
    ok, said = project.configure("-DTREADLE_CUDA=OFF")
    assert ok
    assert "CMake Warning" not in said
    ok, said = project.configure("-DTREADLE_CUDA=perhaps")
    assert not ok
    assert "it must be AUTO, ON or OFF" in said
