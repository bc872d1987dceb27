"""Runs of treadle lite that were killed go on where they were; other runs are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lite_models import CALIBRATION, Tensors
from treadle.errors import InvalidArgumentError
from treadle.lite import auto_awq, calibrate
from treadle.lite.decoder_layer import DecoderLayer
from treadle.lite.work_dir import WorkDir

#: Takes a job and the layers that it does before it is killed; gives the layers of its second run.
Runner = Callable[[Callable[[], object], int], list[int]]


class Killed(BaseException):
    pass


@pytest.fixture
def read_layers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Indices of the layers that were computed."""
    layers: list[int] = []
    read = DecoderLayer.read

    def counted(self: DecoderLayer, index: int) -> None:
        layers.append(index)
        read(self, index)

    monkeypatch.setattr(DecoderLayer, "read", counted)
    return layers


@pytest.fixture
def killed_and_resumed(monkeypatch: pytest.MonkeyPatch, read_layers: list[int]) -> Runner:
    """Runs a job that is killed when it has done so many layers, and runs it once more; the layers
    that the second run computed."""

    def run(job: Callable[[], object], layers: int) -> list[int]:
        save = WorkDir.save

        def save_or_die(self: WorkDir, kind: str, layer: int, tensors: Tensors) -> None:
            if layer == layers:
                raise Killed
            save(self, kind, layer, tensors)

        with monkeypatch.context() as patched:
            patched.setattr(WorkDir, "save", save_or_die)
            with pytest.raises(Killed):
                job()
        read_layers.clear()
        job()
        return list(read_layers)

    return run


def test_calibrate_goes_on(
    model_dir: Path,
    data: Path,
    tmp_path: Path,
    killed_and_resumed: Runner,
    read_layers: list[int],
) -> None:
    def job() -> None:
        calibrate(model_dir, data, tmp_path / "work", **CALIBRATION)

    calibrate(model_dir, data, tmp_path / "whole", **CALIBRATION)
    assert killed_and_resumed(job, 1) == [1, 2]
    for index in range(3):
        name = f"statistics/{index:04d}.safetensors"
        assert (tmp_path / "work" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["run.json", "statistics"]
    read_layers.clear()
    job()
    assert read_layers == []


@pytest.mark.parametrize("scheme", ["awq", "rtn"])
def test_awq_goes_on(
    scheme: str,
    model_dir: Path,
    data: Path,
    tmp_path: Path,
    killed_and_resumed: Runner,
) -> None:
    options: dict[str, Any] = {"scheme": scheme, "group_size": 32, **CALIBRATION}
    tries = []

    def job() -> None:
        tries.append((tmp_path / "out").exists())
        auto_awq(model_dir, tmp_path / "out", data, **options)

    auto_awq(model_dir, tmp_path / "whole", data, **options)
    assert killed_and_resumed(job, 2) == [2]
    assert tries == [False, False]  # the killed run left nothing there
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "out")]
    assert weights[0] == weights[1]


def test_another_run_is_refused(model_dir: Path, data: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    calibrate(model_dir, data, work, samples=8, seqlen=48)
    with pytest.raises(InvalidArgumentError, match=r"whose samples is 8, not 4"):
        calibrate(model_dir, data, work, samples=4, seqlen=48)
    with pytest.raises(InvalidArgumentError, match=r"whose tokens is"):
        calibrate(model_dir, data, work, samples=8, seqlen=48, seed=1)
    calibrate(model_dir, data, work, samples=4, seqlen=48, restart=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(InvalidArgumentError, match=r"mine': it exists and is not an earlier run's"):
        calibrate(model_dir, data, tmp_path / "mine", **CALIBRATION)
    with pytest.raises(InvalidArgumentError, match=r"mine': it exists"):
        calibrate(model_dir, data, tmp_path / "mine", restart=True, **CALIBRATION)
    assert (tmp_path / "mine" / "thesis.txt").exists()
