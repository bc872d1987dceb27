"""int8 KV under everything that moves or shares blocks gives the answers of an engine in which
nothing is shared, evicted or preempted. To the last bit on the CPU; on a GPU a value near the
middle of two steps may be rounded either way, which is as coarse as bfloat16."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from devices import Content, Device
from treadle import Engine
from treadle.outputs import SequenceOutput

QUESTIONS = [
    "What is the capital of Norway?",
    "Reverse the order: stone cloud engine paper",
    "JSON: Ada, 36, London",
    "浙江的省会在哪?",
    "My name is Grace. 你好!",
    "这有什么好吃的",
]
LONG = " ".join(f"The {i}. word of the list is stone number {i * 7}." for i in range(12))


def contents(device: Device, outputs: Sequence[SequenceOutput]) -> list[Content]:
    return replace(device, jitter=8 * device.jitter).content(outputs)


def load(device: Device, path: str, **options: Any) -> Engine:
    return device.load(path, quant_policy=8, num_threads=1, max_batch_size=8, **options)


@pytest.fixture(scope="module")
def plain(device: Device, demo_path: str) -> Iterator[Engine]:
    with load(device, demo_path, enable_prefix_caching=False) as engine:
        assert engine.info.kv_dtype == "int8"
        yield engine


@pytest.fixture
def tiny(device: Device, demo_path: str) -> Iterator[Engine]:
    """Room for 512 tokens in all."""
    with load(device, demo_path, cache_max_entry_count=8, max_prefill_token_num=64) as engine:
        assert engine.info.kv_pool_bytes == 512 * engine.info.kv_bytes_per_token
        yield engine


def prompt(engine: Engine, text: str) -> list[int]:
    return engine.tokenizer.encode(engine.model.get_prompt(text), add_bos=True)


def ask(engine: Engine, prompts: list[list[int]], **options: Any) -> list[SequenceOutput]:
    options = {"max_new_tokens": 40, "do_sample": False, "logprobs": 1} | options
    (outputs,) = engine.create_instance().stream_infer(
        options.pop("session_id", None), prompts, stream_output=False, **options
    )
    return list(outputs)


def test_a_token_takes_a_byte_an_element_and_eight_bytes_a_head(
    device: Device, plain: Engine, demo_path: str
) -> None:
    with device.load(demo_path, cache_max_entry_count=8, dtype="float16") as wide:
        elements = wide.info.kv_bytes_per_token // 2
    head_dim = 64
    assert plain.info.kv_bytes_per_token == elements + elements // head_dim * 8


def test_preempted_answers_are_the_same(device: Device, plain: Engine, tiny: Engine) -> None:
    prompts = [prompt(plain, text) for text in QUESTIONS]
    options = {"max_new_tokens": 150, "ignore_eos": True}
    expected = [ask(plain, [ids], **options)[0] for ids in prompts]
    outputs = ask(tiny, prompts, **options)
    assert tiny.stats().preemptions > 0
    for got, want in zip(outputs, expected, strict=True):
        # Up to the end of the answer the model is sure of itself.
        assert got.error is None
        assert got.token_ids[:8].tolist() == want.token_ids[:8].tolist()
        if device.exact:
            assert device.content([got]) == device.content([want])


def test_evicted_blocks_are_computed_again(device: Device, plain: Engine, tiny: Engine) -> None:
    ids = prompt(plain, LONG + QUESTIONS[0])
    expected = contents(device, ask(plain, [ids], max_new_tokens=8))
    assert contents(device, ask(tiny, [ids], max_new_tokens=8)) == expected
    ask(tiny, [list(range(100, 580))], max_new_tokens=2)
    assert tiny.stats().evicted_blocks > 0
    assert contents(device, ask(tiny, [ids], max_new_tokens=8)) == expected


def test_shared_prefixes_give_the_same(device: Device, plain: Engine, demo_path: str) -> None:
    prompts = [prompt(plain, LONG + text) for text in QUESTIONS]
    with load(device, demo_path) as sharing:
        first = ask(sharing, prompts[:1], max_new_tokens=8)
        outputs = ask(sharing, prompts, max_new_tokens=8)
        assert all(output.usage.cached_tokens >= 64 for output in outputs)
    expected = [ask(plain, [ids], max_new_tokens=8)[0] for ids in prompts]
    assert contents(device, outputs) == contents(device, expected)
    assert contents(device, first) == contents(device, expected[:1])


def test_a_fork_copies_the_last_block(device: Device, plain: Engine, demo_path: str) -> None:
    """Continuations of one prompt write to copies of its last, partly filled block."""
    ids = prompt(plain, QUESTIONS[0])
    assert len(ids) % 64 != 0
    options = {"n": 3, "max_new_tokens": 60, "ignore_eos": True}
    with load(device, demo_path) as sharing:
        outputs = ask(sharing, [ids], **options)
    (expected,) = ask(plain, [ids], max_new_tokens=60, ignore_eos=True)
    assert len(outputs) == 3
    for output in outputs:
        assert output.token_ids[:8].tolist() == expected.token_ids[:8].tolist()
        if device.exact:
            assert device.content([output]) == device.content([expected])


def test_a_session_equals_resending(device: Device, plain: Engine, tiny: Engine) -> None:
    """Also after its blocks were evicted, and their K and V computed again."""
    history: list[int] = []
    for turn, text in enumerate([LONG + QUESTIONS[0], QUESTIONS[3], QUESTIONS[5]]):
        if turn == 2:
            ask(tiny, [list(range(100, 580))], max_new_tokens=2)
            assert tiny.stats().evicted_blocks > 0
        new = prompt(plain, text)
        history += new
        (output,) = ask(tiny, [new], session_id=3, max_new_tokens=8)
        (expected,) = ask(plain, [history], max_new_tokens=8)
        assert contents(device, [output]) == contents(device, [expected])
        if turn == 1:
            assert output.usage.cached_tokens >= len(history) - len(new) - 1
        session = tiny.session(3)
        assert session is not None
        history = session.token_ids.tolist()
    tiny.end_session(3)
