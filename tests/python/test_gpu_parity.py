"""Each model family on the GPU in half precision, against transformers in float32 on the same
weights. How far off is allowed follows from transformers itself in the same half precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import families
import reference
from devices import Device
from reference import HfModel
from treadle import Engine, GenerationConfig

pytestmark = pytest.mark.parametrize("device", ["cuda"], indirect=True)

#: Large enough for every kernel to have more than one tile of everything.
SIZES: dict[str, Any] = {
    "vocab_size": 4001,
    "hidden_size": 512,
    "intermediate_size": 1368,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}


LLAMA3_ROPE = families.rope(
    "llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=256,
)

FAMILIES: dict[str, Callable[[Device], HfModel]] = {
    "llama": lambda device: families.llama(device, **SIZES),
    "llama-biases": lambda device: families.llama(
        device, **SIZES, head_dim=128, attention_bias=True, mlp_bias=True
    ),
    "llama-3.1": lambda device: families.llama(device, **SIZES, **LLAMA3_ROPE),
    "mistral": lambda device: families.mistral(device, **SIZES, head_dim=96, sliding_window=300),
    "qwen2": lambda device: families.qwen2(device, **SIZES, tie_word_embeddings=True),
    "qwen3": lambda device: families.qwen3(device, **SIZES, head_dim=128),
    "qwen3-large-heads": lambda device: families.qwen3(device, **SIZES, head_dim=256),
    "internlm": lambda device: families.split_llama(
        device, **SIZES | {"num_key_value_heads": 8}, attention_bias=True
    ),
    "internlm2": lambda device: families.split_llama(device, **SIZES),
    "internlm3": lambda device: families.llama(device, **SIZES, head_dim=80),
}
#: What makes a llama's checkpoint one of the family's.
RENAMED: dict[str, Callable[[Path, HfModel], None]] = {
    "internlm": lambda path, model: families.as_internlm(path, bias=True),
    "internlm2": lambda path, model: families.as_internlm2(path, model, bias=False),
    "internlm3": lambda path, model: families.as_internlm3(path, qkv_bias=False, bias=False),
}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def on_gpu(model: HfModel) -> HfModel:
    """Where torch has no GPU of its own, the reference runs on the CPU."""
    return model.cuda() if torch.cuda.is_available() else model


def allowed(model: HfModel, half: HfModel, ids: list[int]) -> float:
    """Twice what half precision costs transformers in the log-probabilities of these ids."""
    rows, tokens = torch.arange(len(ids) - 1), torch.tensor(ids[1:])
    exact = reference.logprobs(model, ids)[rows, tokens]
    rounded = reference.logprobs(half, ids)[rows, tokens]
    return 2 * float((exact - rounded).abs().max()) + 0.005


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str, dtype: torch.dtype, device: Device, tmp_path: Path) -> None:
    model = reference.save_rounded(FAMILIES[family](device), dtype, tmp_path)
    half = on_gpu(type(model).from_pretrained(tmp_path, dtype=dtype).eval())
    if family in RENAMED:
        RENAMED[family](tmp_path, model)
    model = on_gpu(model)
    prompt = reference.random_ids(700, SIZES["vocab_size"])
    tolerance = allowed(model, half, prompt)
    with device.load(tmp_path, max_prefill_token_num=512, session_len=1024) as engine:
        assert engine.info.kv_dtype == str(dtype).removeprefix("torch.")
        for length in (1, 64, 700):
            difference = reference.compare(engine, model, prompt[:length])
            assert difference.largest < tolerance, (difference, tolerance)
            assert difference.regret < 2 * tolerance, (difference, tolerance)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_a_ragged_batch(dtype: torch.dtype, device: Device, tmp_path: Path) -> None:
    """Prompts of many lengths in chunks, while others decode already."""
    model = reference.build(LlamaForCausalLM, LlamaConfig(**SIZES, head_dim=128))
    model = reference.save_rounded(model, dtype, tmp_path)
    half = on_gpu(LlamaForCausalLM.from_pretrained(tmp_path, dtype=dtype).eval())
    model = on_gpu(model)
    lengths = [1, 2, 3, 63, 64, 65, 127, 128, 129, 500, 511, 512, 513, 800, 1023, 1024, 1025, 1500]
    prompts = [
        reference.random_ids(length, SIZES["vocab_size"], seed=i)
        for i, length in enumerate(lengths)
    ]
    config = GenerationConfig(
        max_new_tokens=70, do_sample=False, ignore_eos=True, logprobs=0, prompt_logprobs=0
    )
    with device.load(tmp_path, max_prefill_token_num=512, max_batch_size=32) as engine:
        (outputs,) = engine.create_instance().stream_infer(
            None, prompts, config, stream_output=False
        )
    for prompt, output in zip(prompts, outputs, strict=True):
        assert output.error is None, output.error
        ids = [*prompt, *output.token_ids.tolist()]
        assert len(ids) == len(prompt) + 70
        rows = torch.arange(len(ids) - 1)
        table = reference.logprobs(model, ids)[:-1]
        expected = table[rows, ids[1:]].numpy()
        entries = [*(output.prompt_logprobs or []), *(output.logprobs or [])]
        tolerance = allowed(model, half, ids)
        assert np.abs(reference.chosen(entries) - expected).max() < tolerance
        regret = (table.max(dim=-1).values - table[rows, ids[1:]])[len(prompt) - 1 :]
        assert float(regret.max()) < 2 * tolerance


@pytest.fixture(scope="module")
def demo(demo_path: str) -> HfModel:
    return on_gpu(LlamaForCausalLM.from_pretrained(demo_path, dtype="float32").eval())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_demo_model(dtype: str, device: Device, demo_path: str, demo: HfModel) -> None:
    """Greedy answers to the last token, wherever the reference's choice is clear."""
    half = on_gpu(LlamaForCausalLM.from_pretrained(demo_path, dtype=dtype).eval())
    texts = ["浙江的省会在哪?", "What is the capital of Norway?", "Tell me a story about a fox."]
    with device.load(demo_path, dtype=dtype) as engine:
        clear = [share for text in texts for share in check_answer(engine, demo, half, text)]
    assert np.mean(clear) > 0.8


def check_answer(engine: Engine, model: HfModel, half: HfModel, text: str) -> list[bool]:
    """Which of the tokens were clear; they are equal."""
    prompt = engine.tokenizer.encode(engine.model.get_prompt(text))
    output = reference.run(engine, prompt, do_sample=False, logprobs=0, max_new_tokens=100)
    ids = [*prompt, *output.token_ids.tolist()]
    assert len(ids) > len(prompt)
    table = reference.logprobs(model, ids)[len(prompt) - 1 : -1]
    rows, tokens = torch.arange(len(table)), ids[len(prompt) :]
    tolerance = allowed(model, half, ids)
    best = table.topk(2).values
    clear = best[:, 0] - best[:, 1] > 2 * tolerance
    assert (table.argmax(-1)[clear] == torch.tensor(tokens)[clear]).all()
    difference = reference.chosen(output.logprobs) - table[rows, tokens].numpy()
    assert np.abs(difference).max() < tolerance
    return clear.tolist()
