"""The bundled demo model against transformers: both languages, long prompts, perplexity."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM

import devices
import reference
from devices import Device
from reference import HfModel
from treadle import Engine

HELDOUT = Path(__file__).resolve().parents[2] / "examples" / "train_demo" / "heldout.json"

PROMPTS = [
    "浙江的省会在哪?",
    "这有什么好吃的",
    "What is the capital of Norway?",
    "Reverse the order: stone cloud engine paper",
    "JSON: Ada, 36, London",
    "My name is Grace. 你好!",
]


@pytest.fixture(scope="module")
def exact(device: Device, demo_path: str) -> Iterator[Engine]:
    """As near to the float32 reference as the device comes."""
    with device.load(demo_path, dtype=device.dtype, num_threads=2) as engine:
        yield engine


@pytest.fixture(scope="module")
def model(demo_path: str) -> HfModel:
    loaded = LlamaForCausalLM.from_pretrained(demo_path, dtype="float32")
    return loaded.eval()


@pytest.fixture(scope="module")
def heldout() -> dict[str, list[str]]:
    texts: dict[str, list[str]] = json.loads(HELDOUT.read_text("utf-8"))
    return texts


def encode(engine: Engine, text: str) -> list[int]:
    return engine.tokenizer.encode(text, add_bos=True)


def check(engine: Engine, model: HfModel, ids: list[int], new_tokens: int = 64) -> None:
    difference = reference.compare(engine, model, ids, new_tokens)
    device = devices.of(engine)
    assert difference.largest < device.tolerance, difference
    assert difference.regret < device.near_tie, difference


@pytest.mark.parametrize("text", PROMPTS)
def test_answers_equal_transformers(text: str, exact: Engine, model: HfModel) -> None:
    check(exact, model, exact.tokenizer.encode(exact.model.get_prompt(text)))


def test_heldout_conversations_equal_transformers(
    exact: Engine, model: HfModel, heldout: dict[str, list[str]]
) -> None:
    """The longest ones, whole and cut in the middle of an answer."""
    for text in sorted(heldout["chats"], key=len)[-4:]:
        ids = encode(exact, text)
        check(exact, model, ids, 16)
        check(exact, model, ids[: 2 * len(ids) // 3], 16)


def total_logprob(engine: Engine, prompts: list[list[int]]) -> float:
    (outputs,) = engine.create_instance().stream_infer(
        None, prompts, max_new_tokens=1, prompt_logprobs=0, stream_output=False
    )
    return float(sum(reference.chosen(output.prompt_logprobs).sum() for output in outputs))


def test_heldout_perplexity(device: Device, exact: Engine, heldout: dict[str, list[str]]) -> None:
    """1.2475 over 34,468 tokens is what transformers gives in float32."""
    prompts = [encode(exact, text)[:2048] for text in heldout["chats"]]
    assert all(ids[0] == exact.tokenizer.bos_token_id for ids in prompts)
    (outputs,) = exact.create_instance().stream_infer(
        None,
        [ids[:2047] for ids in prompts],
        max_new_tokens=1,
        prompt_logprobs=0,
        stream_output=False,
    )
    total = sum(reference.chosen(output.prompt_logprobs).sum() for output in outputs)
    count = sum(len(ids) - 1 for ids in prompts)
    assert count == 34_468
    assert math.exp(-total / count) == pytest.approx(1.2475, abs=1e-4 if device.exact else 5e-4)


def test_16_bits_keep_the_perplexity(
    device: Device, exact: Engine, model: HfModel, heldout: dict[str, list[str]]
) -> None:
    """Of the KV cache on the CPU, of everything on a GPU."""
    prompts = [encode(exact, text) for text in heldout["chats"][:60]]
    count = sum(len(ids) - 1 for ids in prompts)
    expected = sum(reference.prompt_logprob(model, ids) for ids in prompts)
    for dtype, tolerance in (("float16", 1e-4), ("bfloat16", 1e-3)):
        with device.load(exact.path, dtype=dtype, num_threads=2) as loaded:
            assert loaded.info.kv_dtype == dtype
            difference = abs(total_logprob(loaded, prompts) - expected) / count
            assert difference < tolerance * (1 if device.exact else 5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_int8_kv_keeps_the_perplexity(
    dtype: str, device: Device, demo_path: str, heldout: dict[str, list[str]]
) -> None:
    """Within 1% of what 16 bits give, and in fact much closer; half of the memory, nearly."""
    options: dict[str, Any] = {"dtype": dtype, "num_threads": 2}
    with (
        device.load(demo_path, **options) as wide,
        device.load(demo_path, quant_policy=8, **options) as narrow,
    ):
        assert narrow.info.kv_dtype == "int8"
        assert narrow.info.kv_bytes_per_token < 0.6 * wide.info.kv_bytes_per_token
        prompts = [encode(wide, text)[:2047] for text in heldout["chats"]]
        count = sum(len(ids) - 1 for ids in prompts)
        means = [-total_logprob(engine, prompts) / count for engine in (wide, narrow)]
    assert means[0] != means[1]
    assert math.exp(means[1]) == pytest.approx(math.exp(means[0]), rel=1e-3)


@pytest.fixture(scope="module")
def long_ids(exact: Engine, heldout: dict[str, list[str]]) -> list[int]:
    """Conversations one after the other: 2,047 tokens, the longest prompt there is room for."""
    return encode(exact, "".join(heldout["chats"][:60]))[:2047]


def test_the_longest_prompt(exact: Engine, model: HfModel, long_ids: list[int]) -> None:
    assert len(long_ids) == 2047
    check(exact, model, long_ids, 1)
    check(exact, model, long_ids[:-40], 41)


@pytest.mark.parametrize("chunk", [7, 64, 100])
def test_chunked_prefill(
    chunk: int, device: Device, exact: Engine, model: HfModel, demo_path: str, long_ids: list[int]
) -> None:
    """Any cut of the prompt gives the same, on the CPU to the last bit."""
    prompt = long_ids[:700]
    options = {"max_new_tokens": 20, "logprobs": 2}
    whole = device.content([reference.run(exact, prompt, **options)])
    scored = device.content([reference.run(exact, prompt, prompt_logprobs=2, **options)])
    with device.load(
        demo_path, dtype=device.dtype, max_prefill_token_num=chunk, num_threads=2
    ) as engine:
        if not device.exact:
            check(engine, model, prompt, 20)
            return
        for _ in range(2):  # computed, then with the first one's blocks
            assert device.content([reference.run(engine, prompt, **options)]) == whole
        cut = reference.run(engine, prompt, prompt_logprobs=2, **options)
        assert device.content([cut]) == scored


def test_top_logprobs(device: Device, exact: Engine, model: HfModel) -> None:
    ids = exact.tokenizer.encode(exact.model.get_prompt("四川的省会在哪?"))
    output = reference.run(exact, ids, max_new_tokens=8, logprobs=64, prompt_logprobs=5)
    rows = reference.logprobs(model, [*ids, *output.token_ids.tolist()])
    assert output.prompt_logprobs is not None
    assert output.logprobs is not None
    entries = output.prompt_logprobs + output.logprobs
    # The end token is chosen, but not shown, and neither are its log-probabilities.
    assert len(entries) == len(ids) - 1 + len(output.token_ids)
    for row, entry in zip(rows, entries, strict=False):
        best = row.topk(len(entry.top))
        tokens = [top.token_id for top in entry.top]
        assert [top.logprob for top in entry.top] == pytest.approx(
            best.values.tolist(), abs=device.tolerance
        )
        assert row[tokens].tolist() == pytest.approx(best.values.tolist(), abs=2 * device.tolerance)
        assert len(set(tokens)) == len(tokens)
        assert entry.chosen.logprob == pytest.approx(
            float(row[entry.chosen.token_id]), abs=device.tolerance
        )
