"""async_stream_infer: native asyncio, no threads, clean cancellation."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from devices import Device
from streams import ANSWER
from treadle import Engine
from treadle.aio import LoopWatcher
from treadle.errors import TooLongError
from treadle.generator import Generator
from treadle.outputs import SequenceOutput

LONG: dict[str, Any] = {"ignore_eos": True, "max_new_tokens": 1900}


async def last(stream: Any) -> list[SequenceOutput]:
    outputs: list[SequenceOutput] = []
    async for outputs in stream:  # noqa: B007
        pass
    return outputs


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_it_streams(generator: Generator, prompt_ids: list[int]) -> None:
    async def run() -> None:
        seen = []
        options = {"ignore_eos": True, "max_new_tokens": 60, "return_text": True}
        async for outputs in generator.async_stream_infer(None, prompt_ids, **options):
            seen.append(outputs[0])
        assert len(seen) > 2
        assert "".join(output.new_text for output in seen) == seen[-1].text
        assert len(seen[-1].token_ids) == 60
        assert seen[-1].finish_reason == "length"

    asyncio.run(run())


def test_only_the_end(generator: Generator, prompt_ids: list[int]) -> None:
    async def run() -> list[list[SequenceOutput]]:
        stream = generator.async_stream_infer(None, prompt_ids, stream_output=False)
        return [outputs async for outputs in stream]

    ((output,),) = asyncio.run(run())
    assert generator._engine.tokenizer.decode(output.token_ids) == ANSWER


def test_many_at_once_without_a_thread_each(generator: Generator, prompt_ids: list[int]) -> None:
    async def one(i: int) -> str:
        stream = generator.async_stream_infer(200 + i, prompt_ids, return_text=True)
        text = (await last(stream))[0].text
        generator.end_session(200 + i)
        return text or ""

    async def run() -> list[str]:
        threads = threading.active_count()
        tasks = [asyncio.create_task(one(i)) for i in range(40)]
        await asyncio.sleep(0)
        assert threading.active_count() == threads
        return await asyncio.gather(*tasks)

    assert asyncio.run(run()) == [ANSWER] * 40


def test_batches_and_failures_are_values(generator: Generator, prompt_ids: list[int]) -> None:
    async def run() -> None:
        outputs = await last(generator.async_stream_infer(None, [prompt_ids, [5] * 5000]))
        assert [output.finish_reason for output in outputs] == ["stop", "error"]
        assert isinstance(outputs[1].error, TooLongError)
        outputs = await last(generator.async_stream_infer(None, [[5] * 5000] * 2))
        assert [output.finish_reason for output in outputs] == ["error", "error"]
        with pytest.raises(TooLongError):
            generator.async_stream_infer(None, [5] * 5000)

    asyncio.run(run())


def test_cancelling_the_task(engine: Engine, generator: Generator, prompt_ids: list[int]) -> None:
    async def run() -> None:
        before = engine.stats().requests_cancelled
        started = asyncio.Event()

        async def consume() -> None:
            async for _ in generator.async_stream_infer(301, prompt_ids, **LONG):
                started.set()

        task = asyncio.create_task(consume())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: engine.stats().requests_cancelled == before + 1)
        await until(lambda: not engine.session(301).busy)
        history = len(engine.session(301).token_ids)
        (output,) = await last(generator.async_stream_infer(301, [5], max_new_tokens=2))
        assert output.usage.prompt_tokens == history + 1
        engine.end_session(301)

    asyncio.run(run())


def test_aclose_and_letting_go(engine: Engine, generator: Generator, prompt_ids: list[int]) -> None:
    async def run() -> None:
        before = engine.stats().requests_cancelled
        stream = generator.async_stream_infer(None, prompt_ids, **LONG)
        await anext(stream)
        await stream.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        await stream.aclose()
        async for _ in generator.async_stream_infer(None, prompt_ids, **LONG):
            break
        generator.async_stream_infer(None, prompt_ids, **LONG)
        gc.collect()
        await until(lambda: engine.stats().requests_cancelled == before + 3)

    asyncio.run(run())


def test_a_timeout_around_it(generator: Generator, prompt_ids: list[int]) -> None:
    async def run() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(
                last(generator.async_stream_infer(None, prompt_ids, **LONG)), 0.05
            )

    asyncio.run(run())


def test_cancel_ends_with_values(generator: Generator, prompt_ids: list[int]) -> None:
    async def run() -> None:
        stream = generator.async_stream_infer(None, prompt_ids, **LONG)
        await anext(stream)
        stream.cancel()
        assert (await last(stream))[0].finish_reason == "cancelled"

    asyncio.run(run())


def test_the_loop_stays_free(generator: Generator, prompt_ids: list[int]) -> None:
    """Other tasks run while one waits for tokens."""

    async def run() -> None:
        ticks = 0
        stream = generator.async_stream_infer(None, prompt_ids, **LONG)
        task = asyncio.create_task(last(stream))
        while not task.done():
            await asyncio.sleep(0)
            ticks += 1
        assert (await task)[0].finish_reason == "length"
        assert ticks > 10

    asyncio.run(run())


def test_waiting_uses_no_processor_time(engine: Engine, prompt_ids: list[int]) -> None:
    """A request that waits behind others neither polls nor spins: its loop makes no rounds."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        generator = engine.create_instance()
        busy = [generator.stream_infer(None, prompt_ids, **LONG) for _ in range(16)]
        rounds = 0
        real = loop._run_once  # type: ignore[attr-defined]

        def counted() -> None:
            nonlocal rounds
            rounds += 1
            real()

        loop._run_once = counted  # type: ignore[attr-defined]
        task = asyncio.create_task(last(generator.async_stream_infer(None, prompt_ids)))
        await asyncio.sleep(0.05)
        assert rounds < 20
        for stream in busy:
            stream.close()
        await task

    asyncio.run(run())


def test_several_loops_in_several_threads(generator: Generator, prompt_ids: list[int]) -> None:
    answers: list[str] = []

    async def one() -> None:
        answers.append(
            (await last(generator.async_stream_infer(None, prompt_ids, return_text=True)))[0].text
            or ""
        )

    async def run() -> None:
        await asyncio.gather(*(one() for _ in range(4)))

    threads = [threading.Thread(target=asyncio.run, args=(run(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [ANSWER] * 16


def test_nothing_is_left_in_the_loop(generator: Generator, prompt_ids: list[int]) -> None:
    async def run() -> None:
        await last(generator.async_stream_infer(None, prompt_ids))
        loop = asyncio.get_running_loop()
        assert loop not in LoopWatcher._of_loop
        stream = generator.async_stream_infer(None, prompt_ids, **LONG)
        await anext(stream)
        assert loop in LoopWatcher._of_loop
        await stream.aclose()
        assert loop not in LoopWatcher._of_loop

    asyncio.run(run())


def test_a_stream_may_outlive_its_loop(engine: Engine, prompt_ids: list[int]) -> None:
    kept = []

    async def run() -> None:
        stream = engine.create_instance().async_stream_infer(None, prompt_ids, **LONG)
        await anext(stream)
        kept.append(stream)

    before = engine.stats().requests_cancelled
    asyncio.run(run())
    kept.clear()
    gc.collect()
    while engine.stats().requests_cancelled == before:
        time.sleep(0.001)


def test_a_second_reader_is_refused(generator: Generator, prompt_ids: list[int]) -> None:
    async def run() -> None:
        stream = generator.async_stream_infer(None, prompt_ids, stream_output=False, **LONG)
        first = asyncio.create_task(last(stream))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="another task"):
            await anext(stream)
        first.cancel()

    asyncio.run(run())


def test_ctrl_c_in_asyncio(device: Device) -> None:
    code = (
        "import asyncio, os, signal, sys, treadle\n"
        "engine = treadle.Engine.from_pretrained(treadle.demo_model_path(), device=sys.argv[1])\n"
        "async def run():\n"
        "    stream = engine.create_instance().async_stream_infer(0, [1, 5], ignore_eos=True,"
        " max_new_tokens=1900)\n"
        "    await anext(stream)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    async for _ in stream: pass\n"
        "try: asyncio.run(run())\n"
        "except KeyboardInterrupt: print('interrupted')\n"
        "while engine.stats().requests_cancelled == 0: pass\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, device.name],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (result.stdout, result.returncode) == ("interrupted\n", 0), result.stderr
