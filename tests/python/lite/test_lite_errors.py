"""What treadle lite refuses and how it says so; GPTQ's library, the command line."""

from __future__ import annotations

import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lite_models import CALIBRATION, Tensors, change_config
from treadle.cli import main
from treadle.errors import (
    InvalidArgumentError,
    InvalidModelError,
    NotFoundError,
    OutOfMemoryError,
    UnsupportedError,
)
from treadle.lite import auto_awq, calibrate, gptq, kv_qparams
from treadle.lite.decoder_layer import DecoderLayer
from treadle.lite.samples import load_samples


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 8}, "bits is 8: only 4"),
        ({"group_size": 48}, "group_size is 48: it must be one of 32, 64, 128"),
        ({"group_size": 32.0}, r"group_size is 32\.0: it must be one of 32, 64, 128"),
        ({"group_size": 64}, r"layers\.0\.mlp\.down_proj has 96 inputs, which 32 divides"),
        ({"scheme": "best"}, "scheme is 'best'"),
        ({"samples": 0}, "samples is 0"),
        ({"seqlen": 10**6}, "seqlen is 1000000: the model's max_position_embeddings is 256"),
        ({"seqlen": 300}, "seqlen is 300: the model's max_position_embeddings is 256"),
        ({"device": "gpu"}, "device is 'gpu'"),
        ({"data": None}, "data is None"),
        ({"data": "missing.txt"}, r"data is 'missing\.txt': no such file"),
    ],
)
def test_wrong_options_are_refused(
    options: dict[str, Any], message: str, model_dir: Path, data: Path, tmp_path: Path
) -> None:
    options = {"data": data, "group_size": 32} | CALIBRATION | options
    with pytest.raises((InvalidArgumentError, UnsupportedError, NotFoundError), match=message):
        auto_awq(model_dir, tmp_path / "out", options.pop("data"), **options)
    assert not (tmp_path / "out").exists()


def test_a_full_directory_is_not_overwritten(model_dir: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="exists and is not empty"):
        auto_awq(model_dir, model_dir, scheme="rtn")


def test_missing_memory_is_explained(
    model_dir: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object) -> None:
        raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB.\nMore words.")

    monkeypatch.setattr(DecoderLayer, "run", run)
    with pytest.raises(OutOfMemoryError, match=r"2\.00 GiB\. Free it, or choose device \"cpu\""):
        calibrate(model_dir, data, tmp_path / "work", **CALIBRATION)


def test_unknown_families_are_refused(model_dir: Path, tmp_path: Path) -> None:
    change_config(model_dir, model_type="gpt2")
    with pytest.raises(UnsupportedError, match="model_type is 'gpt2': treadle lite knows llama, "):
        auto_awq(model_dir, tmp_path / "out", scheme="rtn")


def test_workspaces_are_refused(model_dir: Path, tmp_path: Path) -> None:
    (model_dir / "config.ini").touch()
    with pytest.raises(UnsupportedError, match="is a workspace: start from the model directory"):
        auto_awq(model_dir, tmp_path / "out", scheme="rtn")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), r"mlp\.up_proj\.weight is missing"),
        (lambda t: t.update({"model.layers.1.mlp.gate.weight": torch.zeros(2)}), "mlp.gate.weight"),
        (
            lambda t: t.update({"model.layers.1.mlp.up_proj.weight": torch.zeros(2, 2)}),
            r"layer 1, mlp\.up_proj\.weight has shape \[2, 2\], config\.json needs \[96, 64\]",
        ),
        (lambda t: t["model.layers.1.mlp.up_proj.weight"].fill_(np.nan), "not finite"),
    ],
)
def test_broken_models_are_refused(
    change: Callable[[Tensors], object], message: str, model_dir: Path, tmp_path: Path
) -> None:
    tensors = load_file(model_dir / "model.safetensors")
    change(tensors)
    save_file(tensors, model_dir / "model.safetensors", {"format": "pt"})
    with pytest.raises((InvalidModelError, UnsupportedError), match=message):
        auto_awq(model_dir, tmp_path / "out", scheme="rtn", group_size=32)


def test_kv_qparams_errors(model_dir: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"nowhere: not a work directory, it has no run\.json"):
        kv_qparams(tmp_path / "nowhere", model_dir)
    work = tmp_path / "work"
    calibrate(model_dir, data, work, **CALIBRATION)
    with pytest.raises(NotFoundError, match="not a directory, expected a model"):
        kv_qparams(work, tmp_path / "nowhere")
    other = shutil.copytree(model_dir, tmp_path / "other")
    change_config(other, num_key_value_heads=4)
    with pytest.raises(InvalidArgumentError, match=r"of 4 KV heads, the statistics 3 .* of 2"):
        kv_qparams(work, other)
    (work / "statistics" / "0001.safetensors").unlink()
    with pytest.raises(InvalidArgumentError, match="statistics of 1 of 3 layers"):
        kv_qparams(work, model_dir)


# GPTQ, which another library does.


def test_gptq_says_what_is_missing(
    model_dir: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llmcompressor", None)
    with pytest.raises(ImportError, match=r'pip install "treadle\[gptq\]"'):
        gptq(model_dir, tmp_path / "out", data, **CALIBRATION)
    assert not (tmp_path / "out").exists()


def test_gptq_asks_for_what_the_engine_reads(
    model_dir: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []
    modules: dict[str, Any] = {
        name: types.ModuleType(name)
        for name in (
            "datasets",
            "llmcompressor",
            "llmcompressor.modifiers",
            "llmcompressor.modifiers.quantization",
        )
    }
    modules["datasets"].Dataset = types.SimpleNamespace(from_dict=lambda columns: columns)
    modules["llmcompressor"].oneshot = lambda **options: calls.append(options)
    modules["llmcompressor.modifiers.quantization"].GPTQModifier = lambda **options: options
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    gptq(model_dir, tmp_path / "out", data, group_size=32, **CALIBRATION)
    (call,) = calls
    weights = call["recipe"]["config_groups"]["group_0"]["weights"]
    assert weights == {
        "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32
    }  # fmt: skip
    assert call["recipe"]["ignore"] == ["lm_head"]
    ids = load_samples(model_dir, data, seed=0, chat=False, **CALIBRATION)
    assert call["dataset"]["input_ids"] == ids.tolist()
    assert (tmp_path / "out" / "tokenizer.json").exists()


# The command line and the package.


def test_commands(
    model_dir: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work, model = str(tmp_path / "work"), str(model_dir)
    sample = ["--data", str(data), "--samples", "4", "--seqlen", "32"]
    assert main(["lite", "calibrate", model, *sample, "--work-dir", work]) == 0
    assert main(["lite", "kv_qparams", work, "--out", model, "--symmetric"]) == 0
    assert (model_dir / "kv_qparams.safetensors").exists()
    out = str(tmp_path / "awq")
    awq = ["lite", "auto_awq", model, *sample, "--out", out, "--group-size", "32"]
    assert main([*awq, "--work-dir", str(tmp_path / "kept")]) == 0
    assert (tmp_path / "kept" / "statistics" / "0002.safetensors").exists()
    capsys.readouterr()
    assert main(awq) == 1
    assert "exists and is not empty" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["lite", "auto_awq", model, "--out", out, "--scheme", "magic"])


def test_the_package_imports_no_torch() -> None:
    script = (
        "import sys, treadle, treadle.lite\n"
        "from treadle.cli.main import build_parser\n"
        "build_parser()\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
        "sys.modules['torch'] = None\n"
        "try:\n    treadle.lite.calibrate\n"
        "except ImportError as error:\n    print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert 'needs torch: pip install "treadle[quantize]"' in run.stdout
