"""What `device` means, on whatever machine the tests run."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

import treadle
from treadle import Engine, _engine
from treadle.errors import InvalidArgumentError, UnsupportedError

SMALL: dict[str, Any] = {"cache_max_entry_count": 8, "max_batch_size": 4}


def usable_gpus() -> list[str]:
    return [gpu["device"] for gpu in treadle.build_info()["gpus"] if not gpu["problem"]]


def test_build_info() -> None:
    info = treadle.build_info()
    assert info["version"] == treadle.__version__
    assert info["backends"] in (["cpu"], ["cpu", "cuda"])
    # Either GPUs, or why there are none.
    assert bool(info["gpus"]) != bool(info["problem"])
    if info["backends"] == ["cpu"]:
        assert "no CUDA backend" in info["problem"]


def test_auto_takes_a_gpu_where_one_can_be_used(demo_path: str) -> None:
    with Engine.from_pretrained(demo_path, **SMALL) as engine:
        gpus = usable_gpus()
        assert engine.info.device == (gpus[0] if gpus else "cpu")
        assert engine.info.dtype == ("float16" if gpus else "float32")
        assert engine.info.device_note == "" or not gpus


def test_cpu_is_always_there(demo_path: str) -> None:
    with Engine.from_pretrained(demo_path, device="cpu", **SMALL) as engine:
        assert (engine.info.device, engine.info.dtype) == ("cpu", "float32")
        assert engine.info.device_note == ""
        assert engine.info.num_threads > 0


def test_a_gpu_that_is_not_there(demo_path: str) -> None:
    gpus = treadle.build_info()["gpus"]
    if gpus:
        with pytest.raises(InvalidArgumentError, match="this machine has cuda:0"):
            Engine.from_pretrained(demo_path, device=f"cuda:{len(gpus)}")
    else:
        with pytest.raises(UnsupportedError) as caught:
            Engine.from_pretrained(demo_path, device="cuda")
        assert str(caught.value) == f'device = "cuda": {treadle.build_info()["problem"]}'


def test_without_a_visible_gpu(demo_path: str) -> None:
    """The same package on a machine without a GPU; nothing is said about one that nobody sees."""
    code = (
        "import treadle\n"
        f"engine = treadle.Engine.from_pretrained({demo_path!r}, cache_max_entry_count=8)\n"
        "print(engine.info.device, [engine.info.device_note])\n"
        f"try: treadle.Engine.from_pretrained({demo_path!r}, device='cuda')\n"
        "except treadle.errors.UnsupportedError as error: print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    first, second = result.stdout.splitlines()
    if _engine.backends() != "cpu" or not usable_gpus():
        assert first == "cpu ['']"
    assert second.startswith('device = "cuda": ')


@pytest.mark.parametrize("name", ["", "gpu", "CUDA", "cuda:", "cuda:-1", "cuda:1x", "cpu:0"])
def test_names_that_are_none(demo_path: str, name: str) -> None:
    with pytest.raises(InvalidArgumentError, match='must be "auto", "cpu", "cuda" or "cuda:N"'):
        Engine.from_pretrained(demo_path, device=name)


def test_a_gpu_that_is_left_alone_is_logged(
    demo_path: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = _engine.Engine.load

    def load_with_note(*args: Any, **options: Any) -> Any:
        native = load(*args, **options)
        info = native.info() | {"device_note": "the GPU is not used: it is old"}
        return SimpleNamespace(info=lambda: info, close=native.close)

    monkeypatch.setattr(_engine, "Engine", SimpleNamespace(load=load_with_note))
    with caplog.at_level(logging.WARNING, "treadle"):
        Engine.from_pretrained(demo_path, device="cpu", **SMALL).close(0)
    assert caplog.messages == ["the GPU is not used: it is old"]


def test_info_names_the_device(demo_path: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "treadle", "info", demo_path, "--device", "cpu"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "device       cpu\n" in result.stdout
