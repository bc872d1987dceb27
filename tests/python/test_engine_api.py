"""The engine through Python: streaming, sessions, options, text, lifetime."""

from __future__ import annotations

import ast
import gc
import io
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import treadle
from devices import Device
from treadle import Engine, EngineConfig, GenerationConfig
from treadle.errors import (
    DeadlineExceededError,
    QueueFullError,
    ShutdownError,
    TooLongError,
    UnknownSessionError,
)
from treadle.generator import Generator
from treadle.outputs import SequenceOutput

ANSWER = "浙江的省会是杭州。"


@pytest.fixture
def generator(engine: Engine) -> Generator:
    return engine.create_instance()


def last(stream: Any) -> list[SequenceOutput]:
    outputs: list[SequenceOutput] = []
    for outputs in stream:  # noqa: B007
        pass
    return outputs


def wait_until(condition: Any) -> None:
    """For what the engine's thread does a moment later."""
    while not condition():
        time.sleep(0.001)


def test_the_snippet_of_the_readme() -> None:
    import treadle as tm

    path = tm.demo_model_path()
    engine = tm.TurboMind.from_pretrained(path, model_name="internlm-chat-7b")
    generator = engine.create_instance()
    prompt = engine.model.get_prompt("浙江的省会在哪?")
    input_ids = engine.tokenizer.encode(prompt)
    for outputs in generator.stream_infer(session_id=0, input_ids=[input_ids]):
        res, tokens = outputs[0]
    response = engine.tokenizer.decode(res.tolist())
    assert response == ANSWER
    assert res.dtype == np.int32
    assert tokens == len(res)
    engine.close()


def test_outputs_grow_and_earlier_ones_stay(generator: Generator, prompt_ids: list[int]) -> None:
    seen = list(
        generator.stream_infer(
            None, prompt_ids, ignore_eos=True, max_new_tokens=100, return_text=True
        )
    )
    finals = [outputs[0] for outputs in seen]
    final = finals[-1]
    assert len(finals) > 2
    assert final.finish_reason == "length"
    assert len(final.token_ids) == final.usage.output_tokens == 100
    collected: list[int] = []
    text = ""
    for output in finals:
        collected += output.new_token_ids.tolist()
        text += output.new_text
        assert output.token_ids.tolist() == collected
        assert output.text == text
    assert not final.token_ids.flags.writeable
    assert generator._engine.tokenizer.decode(final.token_ids) == final.text


def test_unpacking_and_single_outputs(generator: Generator, prompt_ids: list[int]) -> None:
    outputs = list(generator.stream_infer(None, prompt_ids, stream_output=False))
    assert len(outputs) == 1
    res, tokens = outputs[0][0]
    assert tokens == len(res) > 0
    assert outputs[0][0].text is None
    assert outputs[0][0].logprobs is None


@pytest.mark.parametrize("form", [list, np.array, tuple, lambda x: [x], lambda x: np.array([x])])
def test_forms_of_one_prompt(generator: Generator, prompt_ids: list[int], form: Any) -> None:
    (output,) = last(generator.stream_infer(None, form(prompt_ids)))
    assert generator._engine.tokenizer.decode(output.token_ids) == ANSWER


def test_a_session_keeps_its_history(engine: Engine, generator: Generator) -> None:
    first = engine.tokenizer.encode(engine.model.get_prompt("浙江的省会在哪?"))
    (answer,) = last(generator.stream_infer(11, first))
    wait_until(lambda: not engine.session(11).busy)
    history = engine.session(11).token_ids.tolist()
    assert history[: len(first)] == first
    assert history[len(first) :] == [*answer.token_ids.tolist(), 4]
    turn = engine.model.get_prompt("这有什么好吃的", sequence_start=False)
    ids = engine.tokenizer.encode(turn, continuation=True)
    (second,) = last(generator.stream_infer(11, ids, sequence_start=False, return_text=True))
    assert "西湖醋鱼" in second.text
    assert second.usage.prompt_tokens == len(history) + len(ids)
    # Only what is new, and the end token, which was generated but never fed.
    assert second.usage.computed_tokens <= len(ids) + 1

    # Rolled back to before the second turn, the same turn gives the same answer.
    (again,) = last(generator.stream_infer(11, ids, step=len(history)))
    assert again.token_ids.tolist() == second.token_ids.tolist()
    # Begun afresh, the history is gone.
    (afresh,) = last(generator.stream_infer(11, first, sequence_start=True))
    assert afresh.usage.prompt_tokens == len(first)
    assert engine.end_session(11)
    assert engine.session(11) is None
    assert not engine.end_session(11)
    with pytest.raises(UnknownSessionError, match="session 11 is unknown"):
        generator.stream_infer(11, ids, sequence_start=False)


def test_sequence_end_drops_the_session(engine: Engine, prompt_ids: list[int]) -> None:
    last(engine.create_instance().stream_infer(12, prompt_ids, sequence_end=True))
    wait_until(lambda: engine.session(12) is None)


def test_step_beyond_the_history_names_both(generator: Generator, prompt_ids: list[int]) -> None:
    last(generator.stream_infer(13, prompt_ids))
    wait_until(lambda: not generator._engine.session(13).busy)
    length = len(generator._engine.session(13).token_ids)
    with pytest.raises(ValueError, match=f"step = 9999 .*{length}"):
        generator.stream_infer(13, prompt_ids, step=9999)
    generator.end_session(13)


def test_batch_equals_alone(engine: Engine, generator: Generator) -> None:
    questions = [
        "浙江的省会在哪?",
        "What is 37 + 48?",
        "Reverse the order: stone cloud engine paper",
    ]
    prompts = [engine.tokenizer.encode(engine.model.get_prompt(q)) for q in questions]
    alone = [last(generator.stream_infer(None, ids))[0].token_ids.tolist() for ids in prompts]
    together = last(generator.stream_infer([21, None, 23], prompts))
    assert [output.token_ids.tolist() for output in together] == alone
    assert [output.index for output in together] == [0, 1, 2]
    assert engine.end_session(21)
    assert engine.end_session(23)


def test_one_config_for_each_prompt(generator: Generator, prompt_ids: list[int]) -> None:
    configs = [GenerationConfig(max_new_tokens=n, ignore_eos=True) for n in (3, 5)]
    outputs = last(generator.stream_infer(None, [prompt_ids, prompt_ids], configs))
    assert [len(output.token_ids) for output in outputs] == [3, 5]


def test_continuations_of_one_prompt(generator: Generator, prompt_ids: list[int]) -> None:
    options = {"n": 3, "temperature": 1.5, "max_new_tokens": 8, "ignore_eos": True}
    first = last(generator.stream_infer(None, [prompt_ids] * 2, random_seed=5, **options))
    assert [(o.index, o.continuation) for o in first] == [(p, c) for p in (0, 1) for c in range(3)]
    texts = [o.token_ids.tolist() for o in first]
    assert texts[:3] == texts[3:]  # the same seed
    assert len({tuple(text) for text in texts[:3]}) > 1  # each its own stream of it


def test_a_seed_repeats(generator: Generator, prompt_ids: list[int]) -> None:
    def run(seed: int) -> list[int]:
        options = {"temperature": 1.5, "max_new_tokens": 24, "ignore_eos": True}
        (output,) = last(generator.stream_infer(None, prompt_ids, random_seed=seed, **options))
        return output.token_ids.tolist()

    assert run(1) == run(1)
    assert len({tuple(run(seed)) for seed in range(4)}) > 1


def test_logprobs(generator: Generator, prompt_ids: list[int]) -> None:
    stream = generator.stream_infer(None, prompt_ids, logprobs=3, prompt_logprobs=0)
    (output,) = last(stream)
    assert len(output.logprobs) == len(output.token_ids)
    for token, position in zip(output.token_ids.tolist(), output.logprobs, strict=True):
        assert position.chosen.token_id == token == position.top[0].token_id  # greedy
        assert len(position.top) == 3
        assert position.top[0].logprob >= position.top[1].logprob
        assert position.chosen.logprob <= 0
    assert [p.chosen.token_id for p in output.prompt_logprobs] == prompt_ids[1:]
    assert all(p.top == () for p in output.prompt_logprobs)


@pytest.mark.parametrize("stop", ["杭", "州。", "会是杭"])
def test_stop_words_on_the_text(generator: Generator, prompt_ids: list[int], stop: str) -> None:
    tokens = list(generator.stream_infer(None, prompt_ids))
    everything = tokens[-1][0].token_ids.tolist()
    (output,) = last(generator.stream_infer(None, prompt_ids, stop_words=[stop], return_text=True))
    assert output.finish_reason == "stop"
    assert output.text == ANSWER[: ANSWER.index(stop)]
    shown = output.token_ids.tolist()
    assert shown == everything[: len(shown)]
    assert output.text.startswith(generator._engine.tokenizer.decode(shown))


def test_text_that_might_begin_a_stop_word_is_held_back(
    generator: Generator, prompt_ids: list[int]
) -> None:
    stream = generator.stream_infer(None, prompt_ids, stop_words=["杭州。x"], return_text=True)
    texts = [outputs[0].text for outputs in stream]
    assert texts[-1] == ANSWER
    assert all("杭" not in text for text in texts[:-1])


def test_a_session_goes_on_from_a_stop_word(engine: Engine, generator: Generator) -> None:
    """The engine may be some tokens further when the text shows the word: they do not count."""
    ids = engine.tokenizer.encode("The sky")
    options: dict[str, Any] = {"max_new_tokens": 40, "ignore_eos": True}
    (whole,) = last(generator.stream_infer(None, ids, return_text=True, **options))
    stop = whole.text[12:20]
    (output,) = last(generator.stream_infer(31, ids, stop_words=[stop], **options))
    used = output.usage.output_tokens
    assert used < 40
    kept = [*ids, *whole.token_ids.tolist()[:used]]
    wait_until(lambda: not engine.session(31).busy)
    assert engine.session(31).token_ids.tolist() == kept
    (after,) = last(generator.stream_infer(31, [5], max_new_tokens=1))
    assert after.usage.prompt_tokens == len(kept) + 1
    wait_until(lambda: not engine.session(31).busy)
    assert engine.session(31).token_ids.tolist()[: len(kept) + 1] == [*kept, 5]
    engine.end_session(31)


def test_min_new_tokens_bars_stop_words(generator: Generator, prompt_ids: list[int]) -> None:
    options: dict[str, Any] = {"stop_words": ["江"], "ignore_eos": True, "max_new_tokens": 30}
    (output,) = last(generator.stream_infer(None, prompt_ids, min_new_tokens=2, **options))
    assert len(output.token_ids) >= 2


def test_stop_sequences_and_tokens(generator: Generator, prompt_ids: list[int]) -> None:
    (whole,) = last(generator.stream_infer(None, prompt_ids, ignore_eos=True, max_new_tokens=20))
    ids = whole.token_ids.tolist()
    place = 5
    options: dict[str, Any] = {"ignore_eos": True, "max_new_tokens": 20}
    words = [ids[place : place + 2]]
    (output,) = last(generator.stream_infer(None, prompt_ids, stop_words=words, **options))
    assert output.finish_reason == "stop"
    shown = output.token_ids.tolist()
    assert shown == ids[: len(shown)]
    assert len(shown) <= place
    (output,) = last(
        generator.stream_infer(None, prompt_ids, stop_token_ids=[ids[place]], **options)
    )
    assert output.token_ids.tolist() == ids[: ids.index(ids[place])]


def test_bad_words_do_not_appear(generator: Generator, prompt_ids: list[int]) -> None:
    (output,) = last(generator.stream_infer(None, prompt_ids, bad_words=["杭州"], return_text=True))
    assert "杭州" not in output.text


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


def test_stats_info_and_health(engine: Engine, prompt_ids: list[int]) -> None:
    before = engine.stats()
    last(engine.create_instance().stream_infer(None, prompt_ids))
    wait_until(lambda: engine.stats().requests_finished > before.requests_finished)
    after = engine.stats()
    assert after.requests_submitted == before.requests_submitted + 1
    assert after.prompt_tokens == before.prompt_tokens + len(prompt_ids)
    assert after.output_tokens > before.output_tokens
    assert after.mean_ttft > 0
    assert after.as_dict()["steps"] == after.steps
    assert engine.info.architecture == "LlamaForCausalLM"
    assert engine.info.session_len == 2048
    assert engine.info.eos_token_ids == [2, 4]
    assert engine.info.kv_blocks == 512
    assert engine.health()
    assert engine.health().cause == ""


def test_closing(device: Device, demo_path: str, prompt_ids: list[int]) -> None:
    engine = device.load(demo_path, cache_max_entry_count=64)
    stream = engine.create_instance().stream_infer(
        None, prompt_ids, ignore_eos=True, max_new_tokens=1900
    )
    next(stream)
    engine.close()
    (output,) = last(stream)
    assert output.finish_reason == "error"
    assert isinstance(output.error, ShutdownError)
    engine.close()
    assert not engine.health()
    assert "closed" in engine.health().cause
    with pytest.raises(ShutdownError, match="closed"):
        engine.create_instance().stream_infer(None, prompt_ids)
    with pytest.raises(ShutdownError, match="closed"):
        engine.stats()
    assert engine.info.vocab_size == 4096  # what was loaded can still be read


def test_closing_may_let_requests_finish(
    device: Device, demo_path: str, prompt_ids: list[int]
) -> None:
    engine = device.load(demo_path, cache_max_entry_count=64)
    stream = engine.create_instance().stream_infer(None, prompt_ids)
    engine.close(drain_seconds=60)
    assert last(stream)[0].finish_reason == "stop"


def test_a_full_queue(device: Device, demo_path: str) -> None:
    config = EngineConfig(max_batch_size=1, max_queue_size=2, cache_max_entry_count=64)
    with device.load(demo_path, config=config) as engine:
        generator = engine.create_instance()
        ids = engine.tokenizer.encode("The sky")
        options: dict[str, Any] = {"ignore_eos": True, "max_new_tokens": 1900}
        streams = [generator.stream_infer(None, ids, **options)]
        next(streams[0])
        streams += [generator.stream_infer(None, ids, **options) for _ in range(2)]
        with pytest.raises(QueueFullError, match="2"):
            generator.stream_infer(None, ids)
        for stream in streams:
            stream.close()


def test_config_and_overrides(device: Device, demo_path: str) -> None:
    config = EngineConfig(max_batch_size=2, cache_max_entry_count=64)
    with device.load(demo_path, config=config, session_len=256) as engine:
        assert engine.config.max_batch_size == 2
        assert engine.info.session_len == 256
        assert config.session_len is None  # the caller's object is left alone


def test_loading_tells_its_progress_and_can_be_stopped(device: Device, demo_path: str) -> None:
    from treadle import _engine

    seen: list[tuple[int, int]] = []

    def tell(done: int, total: int) -> None:
        seen.append((done, total))

    native = EngineConfig(device=device.name, cache_max_entry_count=8).to_native()
    _engine.Engine.load(demo_path, native, on_load_progress=tell).close()
    assert seen[-1][0] == seen[-1][1] > 16_000_000
    assert seen == sorted(seen)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _engine.Engine.load(demo_path, native, on_load_progress=stop)


def test_a_slow_load_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    from treadle import progress

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def load(stderr: io.StringIO, delay: float) -> str:
        monkeypatch.setattr(sys, "stderr", stderr)
        monkeypatch.setattr(progress, "LOAD_DELAY_S", delay)
        with progress.LoadProgress("tiny-model") as bar:
            if bar.callback is not None:
                bar.callback(0, 123)
                bar.callback(123, 123)
        return stderr.getvalue()

    assert "tiny-model" in load(Terminal(), 0.0)
    assert load(Terminal(), 1000.0) == ""  # quick
    assert load(io.StringIO(), 0.0) == ""  # nobody would see it


def test_the_stub_names_what_the_extension_has() -> None:
    """Classes and their members, both ways."""
    from treadle import _engine

    stub = ast.parse((Path(treadle.__file__).parent / "_engine.pyi").read_text(encoding="utf-8"))
    for node in stub.body:
        if isinstance(node, ast.FunctionDef):
            assert callable(getattr(_engine, node.name))
        if not isinstance(node, ast.ClassDef):
            continue
        listed = {
            item.target.id if isinstance(item, ast.AnnAssign) else item.name  # type: ignore[union-attr]
            for item in node.body
            if isinstance(item, ast.AnnAssign | ast.FunctionDef)
        }
        members = {name for name in vars(getattr(_engine, node.name)) if not name.startswith("_")}
        assert {name for name in listed if not name.startswith("_")} == members
    classes = {name for name, value in vars(_engine).items() if isinstance(value, type)}
    assert classes == {node.name for node in stub.body if isinstance(node, ast.ClassDef)}


def test_without_a_tokenizer_ids_still_work(device: Device, tmp_path: Any, demo_path: str) -> None:
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(Path(demo_path) / name)
    with device.load(tmp_path, cache_max_entry_count=64) as engine:
        (output,) = last(engine.create_instance().stream_infer(0, [1, 5, 6], max_new_tokens=3))
        assert len(output.token_ids) <= 3
        with pytest.raises(treadle.TreadleError, match=r"tokenizer\.json"):
            _ = engine.tokenizer
        with pytest.raises(treadle.TreadleError, match=r"tokenizer\.json"):
            engine.create_instance().stream_infer(0, [1, 5], return_text=True)


def run_python(code: str, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **options,
    )


def test_importing_is_lazy() -> None:
    code = (
        "import sys, treadle\n"
        "heavy = {'numpy', 'tokenizers', 'jinja2', 'tqdm', 'sentencepiece', 'treadle._engine'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "treadle.Engine; treadle.GenerationConfig; treadle.pipeline; treadle.errors\n"
        "print(sorted({'torch', 'transformers', 'jinja2', 'tqdm'} & set(sys.modules)))\n"
        "print(callable(treadle.pipeline), treadle.TurboMind is treadle.Engine)\n"
    )
    result = run_python(code)
    assert result.stdout.splitlines() == ["[]", "[]", "True True"], result.stderr


def test_exit_without_closing_is_clean(device: Device) -> None:
    code = (
        "import sys, treadle\n"
        "engine = treadle.Engine.from_pretrained(treadle.demo_model_path(), device=sys.argv[1])\n"
        "stream = engine.create_instance().stream_infer(0, [1, 5], ignore_eos=True,"
        " max_new_tokens=1900)\n"
        "print(len(next(stream)))\n"
    )
    result = run_python(code, device.name)
    assert (result.returncode, result.stdout, result.stderr) == (0, "1\n", "")


def test_a_forked_child_is_told(device: Device) -> None:
    code = (
        "import os, sys, treadle\n"
        "engine = treadle.Engine.from_pretrained(treadle.demo_model_path(), device=sys.argv[1])\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    try: engine.create_instance().stream_infer(0, [1, 5])\n"
        "    except treadle.errors.ShutdownError as e: print('fork' in str(e), flush=True)\n"
        "    raise SystemExit\n"
        "print(os.waitpid(pid, 0)[1])\n"
    )
    result = run_python(code, device.name)
    assert result.stdout.split() == ["True", "0"], result.stderr


def test_ctrl_c_reaches_a_waiting_thread(device: Device) -> None:
    """The signal comes while the main thread waits inside the extension."""
    code = (
        "import os, signal, sys, threading, treadle\n"
        "engine = treadle.Engine.from_pretrained(treadle.demo_model_path(), device=sys.argv[1],"
        " max_batch_size=1)\n"
        "generator = engine.create_instance()\n"
        "options = dict(ignore_eos=True, max_new_tokens=1900)\n"
        "running = generator.stream_infer(1, [1, 5], **options)\n"
        "next(running)\n"
        "waiting = generator.stream_infer(2, [1, 5], stream_output=False, **options)\n"
        "threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "try:\n"
        "    for _ in waiting: print('not interrupted')\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
        "running.close()\n"
        "out = list(generator.stream_infer(2, [1, 5], max_new_tokens=2))[-1]\n"
        "print(out[0].finish_reason)\n"
    )
    result = run_python(code, device.name)
    assert result.stdout.splitlines() == ["interrupted", "length"], result.stderr


def test_a_stop_text_does_not_cut_a_turn_that_was_queued_behind_it(engine: treadle.Engine) -> None:
    generator = engine.create_instance()
    session = 987_001
    story = engine.tokenizer.encode(engine.model.get_prompt("Tell me a story about a fox."))
    second = engine.tokenizer.encode(
        engine.model.get_prompt("What is 37 + 48?", sequence_start=False), continuation=True
    )
    greedy = treadle.GenerationConfig(do_sample=False, max_new_tokens=24, ignore_eos=True)
    stopped = generator.stream_infer(session, [story], greedy, stop_words=["fox"])
    behind = generator.stream_infer(session, [second], greedy)
    for _ in stopped:
        pass
    for outputs in behind:
        usage = outputs[0].usage
    after = usage.prompt_tokens + usage.output_tokens
    for outputs in generator.stream_infer(session, [second], greedy):
        usage = outputs[0].usage
    engine.end_session(session)
    assert usage.prompt_tokens == after + len(second)
