"""int8 KV with the ranges of kv_qparams.safetensors, measured here on transformers' own cache."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

import reference
from devices import Device
from reference import HfModel
from treadle import Engine
from treadle.errors import InvalidModelError

HELDOUT = Path(__file__).resolve().parents[2] / "examples" / "train_demo" / "heldout.json"
FILE = "kv_qparams.safetensors"
MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
               "tokenizer_config.json")  # fmt: skip


def load(path: str | Path, **options: Any) -> Engine:
    return Engine.from_pretrained(path, **({"device": "cpu", "num_threads": 2} | options))


def measure(model: HfModel, texts: list[list[int]], *, symmetric: bool) -> torch.Tensor:
    """[layers][2 (K, V)][kv_heads][2 (scale, zero)] over all tokens of the texts."""
    low: torch.Tensor | float = math.inf
    high: torch.Tensor | float = -math.inf
    for ids in texts:
        with torch.inference_mode():
            cache = model(torch.tensor([ids]), use_cache=True).past_key_values
        parts = [torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers]
        both = torch.stack(parts).flatten(-2)  # [layers][2][kv_heads][tokens * head_dim]
        low = torch.minimum(both.amin(-1), torch.as_tensor(low))
        high = torch.maximum(both.amax(-1), torch.as_tensor(high))
    assert isinstance(low, torch.Tensor)
    assert isinstance(high, torch.Tensor)
    if symmetric:
        scale = torch.maximum(-low, high) / 127
        zero = torch.zeros_like(scale)
    else:
        scale, zero = (high - low) / 255, (high + low) / 2
    return torch.stack([scale, zero], dim=-1).float()


@pytest.fixture(scope="module")
def texts(engine_cpu: Engine) -> list[list[int]]:
    chats = json.loads(HELDOUT.read_text("utf-8"))["chats"]
    return [engine_cpu.tokenizer.encode(text, add_bos=True)[:512] for text in chats[:70]]


@pytest.fixture(scope="module")
def engine_cpu(demo_path: str) -> Any:
    with load(demo_path, dtype="float32") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def model(demo_path: str) -> HfModel:
    return LlamaForCausalLM.from_pretrained(demo_path, dtype="float32").eval()


@pytest.fixture
def copied(demo_path: str, tmp_path: Path) -> Path:
    for name in MODEL_FILES:
        shutil.copy(Path(demo_path) / name, tmp_path)
    return tmp_path


def perplexity(engine: Engine, texts: list[list[int]]) -> float:
    (outputs,) = engine.create_instance().stream_infer(
        None, texts, max_new_tokens=1, prompt_logprobs=0, stream_output=False
    )
    total = sum(reference.chosen(output.prompt_logprobs).sum() for output in outputs)
    return math.exp(-total / sum(len(ids) - 1 for ids in texts))


@pytest.mark.parametrize("symmetric", [True, False])
def test_calibrated_ranges_keep_the_perplexity(
    symmetric: bool,
    device: Device,
    copied: Path,
    model: HfModel,
    engine_cpu: Engine,
    texts: list[list[int]],
) -> None:
    """Ranges of some texts, perplexity of others."""
    ranges = measure(model, texts[:30], symmetric=symmetric)
    save_file({"kv_qparams": ranges}, copied / FILE)
    wide = perplexity(engine_cpu, texts[30:])
    with device.load(copied, quant_policy=8) as engine:
        assert (engine.info.kv_dtype, engine.info.kv_static_ranges) == ("int8", True)
        values = 2 * engine.info.num_layers * engine.info.num_kv_heads * engine.info.head_dim
        assert engine.info.kv_bytes_per_token == values  # a byte each: half of what 16 bits take
        narrow = perplexity(engine, texts[30:])
    assert narrow != wide
    assert narrow == pytest.approx(wide, rel=0.01)


def test_each_layer_head_and_part_has_its_own(
    copied: Path, model: HfModel, engine_cpu: Engine, texts: list[list[int]]
) -> None:
    """One wrong place shows: ranges a hundred times too wide leave three bits or less."""
    ranges = measure(model, texts[:20], symmetric=False)
    prompt = texts[50]
    expected = reference.logprobs(model, prompt)[torch.arange(len(prompt) - 1), prompt[1:]]

    def error(values: torch.Tensor) -> float:
        save_file({"kv_qparams": values}, copied / FILE)
        with load(copied, quant_policy=8, max_batch_size=2) as engine:
            output = reference.run(engine, prompt, max_new_tokens=1, prompt_logprobs=0)
        return float(abs(reference.chosen(output.prompt_logprobs) - expected.numpy()).mean())

    good = error(ranges)
    for index in [(0, 0, 0), (0, 1, 1), (3, 1, 0), (7, 0, -1), (7, 1, -1)]:
        spoilt = ranges.clone()
        spoilt[index][0] *= 300
        assert error(spoilt) > 1.5 * good, index


def test_they_need_int8(copied: Path) -> None:
    save_file({"kv_qparams": torch.ones(8, 2, 2, 2)}, copied / FILE)
    with load(copied) as engine:
        assert not engine.info.kv_static_ranges
    (copied / FILE).unlink()
    with load(copied, quant_policy=8) as engine:
        assert (engine.info.kv_dtype, engine.info.kv_static_ranges) == ("int8", False)


def test_wrong_ones_are_refused(copied: Path) -> None:
    save_file({"kv_qparams": torch.ones(7, 2, 2, 2)}, copied / FILE)
    with pytest.raises(InvalidModelError, match=r"kv_qparams.*\[7, 2, 2, 2\].*needs F32 \[8, 2"):
        load(copied, quant_policy=8)
