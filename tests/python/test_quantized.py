"""4-bit checkpoints of every layout against transformers on the dequantised weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import devices
import reference
from devices import Device
from quantized_models import Layout, Tensors, make
from treadle import Engine
from treadle.errors import InvalidModelError, UnsupportedError


def load(directory: Path, device: Device = devices.CPU, dtype: str | None = None) -> Engine:
    return device.load(
        directory, dtype=dtype or device.dtype, num_threads=2, session_len=512, max_batch_size=2
    )


LAYOUTS = [
    *(Layout("awq", group) for group in (32, 64, 128, -1)),
    *(Layout("gptq", group) for group in (32, 128, -1)),
    Layout("gptq", symmetric=True),
    Layout("gptq", 32, scattered=True),
    Layout("gptq_v2"),
    Layout("gptq_v2", symmetric=True, scattered=True),
    *(Layout("packed", group, symmetric=True) for group in (32, 128, -1)),
    Layout("packed", scale_dtype=torch.bfloat16),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_layouts(layout: Layout, device: Device, tmp_path: Path) -> None:
    model = make(layout, tmp_path, head=layout.group == 32)
    with load(tmp_path, device) as engine:
        prompt = reference.random_ids(60, model.config.vocab_size)
        difference = reference.compare(engine, model, prompt, 24)
    assert difference.largest < (1e-3 if device.exact else device.tolerance)
    assert difference.regret < device.near_tie


def test_bfloat16_activations(device: Device, tmp_path: Path) -> None:
    """Scales of a float16 checkpoint keep their digits."""
    if device.exact:
        pytest.skip("the CPU computes in float32")
    model = make(Layout("awq"), tmp_path)
    with load(tmp_path, device, "bfloat16") as engine:
        prompt = reference.random_ids(60, model.config.vocab_size)
        difference = reference.compare(engine, model, prompt, 24)
        assert difference.largest < devices.of(engine).tolerance


def test_the_gpu_is_chosen_by_itself(device: Device, tmp_path: Path) -> None:
    """4-bit weights are no reason to fall back to the CPU."""
    if device.exact:
        pytest.skip("is about a GPU")
    make(Layout("awq"), tmp_path)
    with Engine.from_pretrained(
        tmp_path, device="auto", cache_max_entry_count=64, session_len=512, max_batch_size=2
    ) as engine:
        assert engine.info.device.startswith("cuda")


def test_cache_has_the_type_of_the_model(tmp_path: Path) -> None:
    """Its pages are read from the second chunk of a prompt on."""
    model = make(Layout("awq"), tmp_path)
    options: dict[str, Any] = {"session_len": 512, "max_prefill_token_num": 16}
    with Engine.from_pretrained(tmp_path, device="cpu", num_threads=2, **options) as engine:
        assert engine.info.kv_dtype == "float32"
        prompt = reference.random_ids(60, model.config.vocab_size)
        assert reference.compare(engine, model, prompt, 24).largest < 1e-3


def drop_scales(tensors: Tensors) -> None:
    del tensors["model.layers.1.mlp.down_proj.scales"]


def break_index(tensors: Tensors) -> None:
    tensors["model.layers.1.mlp.down_proj.g_idx"][5] = 99


def break_scale(tensors: Tensors) -> None:
    tensors["model.layers.1.mlp.down_proj.scales"][0, 0] = float("nan")


def break_zero(tensors: Tensors) -> None:
    tensors["model.layers.1.mlp.down_proj.qzeros"][0, 0] = -1


@pytest.mark.parametrize("damage", [drop_scales, break_index, break_scale, break_zero])
def test_damage_is_named(damage: Callable[[Tensors], None], tmp_path: Path) -> None:
    make(Layout("gptq"), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    damage(tensors)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InvalidModelError, match=r"model\.layers\.1\.mlp\.down_proj\."):
        load(tmp_path)


def test_other_methods_are_refused(tmp_path: Path) -> None:
    make(Layout("awq"), tmp_path)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    fields["quantization_config"]["bits"] = 8
    path.write_text(json.dumps(fields))
    with pytest.raises(UnsupportedError, match=r"quantization_config\.bits is 8"):
        load(tmp_path)
