"""Requests that are cancelled, late or wrong, and many threads at once."""

from __future__ import annotations

import gc
import threading
from typing import Any

import pytest

from streams import ANSWER, last, wait_until
from treadle import Engine
from treadle.errors import (
    DeadlineExceededError,
    TooLongError,
)
from treadle.generator import Generator


def test_leaving_the_loop_cancels(engine: Engine, generator: Generator) -> None:
    ids = engine.tokenizer.encode("The sky")
    before = engine.stats().requests_cancelled
    options: dict[str, Any] = {"ignore_eos": True, "max_new_tokens": 1900}
    for _ in generator.stream_infer(41, ids, **options):
        break
    gc.collect()
    with generator.stream_infer(None, ids, **options) as stream:
        next(stream)
    generator.stream_infer(None, ids, **options)  # never read
    gc.collect()
    wait_until(lambda: engine.stats().requests_cancelled == before + 3)
    wait_until(lambda: engine.stats().running == 0)
    wait_until(lambda: not engine.session(41).busy)
    history = engine.session(41).token_ids.tolist()
    assert history[: len(ids)] == ids
    (output,) = last(generator.stream_infer(41, [5, 6], max_new_tokens=4))  # still usable
    assert output.usage.prompt_tokens == len(history) + 2
    engine.end_session(41)


def test_cancel_by_session(engine: Engine, generator: Generator) -> None:
    ids = engine.tokenizer.encode("The sky")
    stream = generator.stream_infer(42, ids, ignore_eos=True, max_new_tokens=1900)
    next(stream)
    assert engine.cancel(42)
    (output,) = last(stream)
    assert output.finish_reason == "cancelled"
    assert output.error is None
    wait_until(lambda: not engine.session(42).busy)
    assert not engine.cancel(42)
    assert not engine.cancel(4242)
    engine.end_session(42)


def test_cancel_from_another_thread(engine: Engine, generator: Generator) -> None:
    ids = engine.tokenizer.encode("The sky")
    stream = generator.stream_infer(None, ids, ignore_eos=True, max_new_tokens=1900)
    next(stream)
    threading.Thread(target=stream.cancel).start()
    assert last(stream)[0].finish_reason == "cancelled"


def test_close_from_another_thread(engine: Engine, generator: Generator) -> None:
    ids = engine.tokenizer.encode("The sky")
    options: dict[str, Any] = {"ignore_eos": True, "max_new_tokens": 1900}
    stream = generator.stream_infer(None, ids, stream_output=False, **options)
    threading.Timer(0.05, stream.close).start()
    assert list(stream) == []


def test_a_timeout_is_a_value(engine: Engine, generator: Generator) -> None:
    ids = engine.tokenizer.encode("The sky")
    (output,) = last(
        generator.stream_infer(None, ids, ignore_eos=True, max_new_tokens=1900, timeout=0.02)
    )
    assert output.finish_reason == "error"
    assert isinstance(output.error, DeadlineExceededError)
    assert isinstance(output.error, TimeoutError)


def test_one_wrong_prompt_does_not_stop_the_others(engine: Engine, prompt_ids: list[int]) -> None:
    generator = engine.create_instance()
    too_long = [5] * 5000
    outputs = last(generator.stream_infer(None, [prompt_ids, too_long, prompt_ids]))
    assert [output.finish_reason for output in outputs] == ["stop", "error", "stop"]
    assert isinstance(outputs[1].error, TooLongError)
    assert "5000" in str(outputs[1].error)
    assert engine.tokenizer.decode(outputs[2].token_ids) == ANSWER
    with pytest.raises(TooLongError, match="5000 .*2048"):
        generator.stream_infer(None, too_long)


def test_many_threads(engine: Engine, prompt_ids: list[int]) -> None:
    answers: list[str] = []

    def run(session_id: int) -> None:
        stream = engine.create_instance().stream_infer(session_id, prompt_ids, return_text=True)
        answers.append(last(stream)[0].text or "")
        engine.end_session(session_id)

    threads = [threading.Thread(target=run, args=(100 + i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [ANSWER] * 12
