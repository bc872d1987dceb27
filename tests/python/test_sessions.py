"""A session gives what resending its whole history to a fresh engine gives: whatever was evicted,
cancelled, preempted or rolled back in between. Bit for bit on the CPU; on a GPU the same tokens,
with log-probabilities as close as half precision is."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

import reference
from devices import Content, Device
from treadle import Engine
from treadle.errors import InvalidArgumentError, TooLongError
from treadle.outputs import SequenceOutput

VOCAB = 200
STOP = 17  # ends a turn where a test asks for it; part of the history, not of the output


@pytest.fixture(scope="module")
def path(device: Device, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reference.save_small_llama(tmp_path_factory.mktemp("llama"), device)


@pytest.fixture(scope="module")
def dynamic_path(device: Device, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Beyond 100 tokens its keys depend on the length of the prompt."""
    return reference.save_small_llama(
        tmp_path_factory.mktemp("dynamic"),
        device,
        max_position_embeddings=100,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 500.0, "factor": 3.0},
    )


class Fresh:
    """Computes every history from its first token on: no sessions, no reuse, one at a time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def run(self, ids: Sequence[int], **options: Any) -> list[SequenceOutput]:
        return self.history(ids, **options)[0]

    def history(self, ids: Sequence[int], **options: Any) -> tuple[list[SequenceOutput], list[int]]:
        """Also what a session that began with ``ids`` holds afterwards."""
        outputs = turn(self._engine, 0, ids, sequence_start=True, **options)
        session = self._engine.session(0)
        assert session is not None
        self._engine.end_session(0)
        return outputs, session.token_ids.tolist()


def load_fresh(device: Device, path: Path) -> Engine:
    return device.load(
        path, num_threads=1, max_batch_size=4, session_len=1024, enable_prefix_caching=False
    )


@pytest.fixture(scope="module")
def fresh(device: Device, path: Path) -> Iterator[Fresh]:
    with load_fresh(device, path) as engine:
        yield Fresh(engine)


@pytest.fixture(scope="module")
def roomy(device: Device, path: Path) -> Iterator[Engine]:
    with device.load(path, num_threads=1, max_batch_size=8) as engine:
        yield engine


@pytest.fixture(params=[True, False], ids=["shared", "private"])
def tiny(request: pytest.FixtureRequest, device: Device, path: Path) -> Iterator[Engine]:
    """Room for 512 tokens in all: sessions lose their blocks as soon as something else runs."""
    with device.load(
        path,
        num_threads=1,
        max_batch_size=8,
        cache_max_entry_count=8,
        max_prefill_token_num=64,
        enable_prefix_caching=request.param,
    ) as engine:
        assert engine.info.session_len == 512
        yield engine


def turn(
    engine: Engine, session_id: int | None, ids: Sequence[int], **options: Any
) -> list[SequenceOutput]:
    options = {"max_new_tokens": 20, "ignore_eos": True, "logprobs": 1} | options
    (outputs,) = engine.create_instance().stream_infer(
        session_id, list(ids), stream_output=False, **options
    )
    return list(outputs)


def history(engine: Engine, session_id: int) -> list[int]:
    session = engine.session(session_id)
    assert session is not None
    assert not session.busy
    return session.token_ids.tolist()


def evict(engine: Engine) -> None:
    """Fills the whole pool with something else, twice."""
    for seed in (1, 2):
        ids = reference.random_ids(engine.info.session_len - 2, VOCAB, seed=seed)
        turn(engine, None, ids, max_new_tokens=2)


def ids_of(length: int, seed: int = 0) -> list[int]:
    return reference.random_ids(length, VOCAB, seed=1000 + seed)


# Turns.


@pytest.mark.parametrize("first", [1, 10, 43, 44, 45, 46, 107, 200])
@pytest.mark.parametrize("second", [1, 64, 100])
def test_turns_equal_resending(
    device: Device, roomy: Engine, fresh: Fresh, first: int, second: int
) -> None:
    """With 20 tokens of output the first turns end around the borders of blocks."""
    ids: list[int] = []
    for i, length in enumerate((first, second, 30)):
        new = ids_of(length, i)
        expected, after = fresh.history([*ids, *new])
        assert device.content(turn(roomy, 5, new)) == device.content(expected)
        ids = after
        assert history(roomy, 5) == ids
    roomy.end_session(5)


def test_a_turn_computes_only_what_is_new(roomy: Engine) -> None:
    """The newest token of the history was chosen, but not fed yet."""
    before = roomy.stats()
    (first,) = turn(roomy, 6, ids_of(150, 50))
    assert first.usage == (150, 0, 150, 20)
    (second,) = turn(roomy, 6, ids_of(9, 51))
    assert second.usage == (179, 169, 10, 20)
    (third,) = turn(roomy, 6, ids_of(1, 52))
    assert third.usage == (200, 198, 2, 20)
    after = roomy.stats()
    assert after.prompt_tokens - before.prompt_tokens == 150 + 179 + 200
    assert after.computed_tokens - before.computed_tokens == 150 + 10 + 2
    assert after.prefix_hit_tokens - before.prefix_hit_tokens == 169 + 198
    assert after.output_tokens - before.output_tokens == 60
    roomy.end_session(6)


def test_a_resent_history_reuses_full_blocks(device: Device, roomy: Engine) -> None:
    prompt = ids_of(150, 60)
    (first,) = turn(roomy, None, prompt)
    (second,) = turn(roomy, None, prompt)
    assert second.usage.cached_tokens == 128
    assert device.content([second]) == device.content([first])


def test_private_blocks_are_not_shared(device: Device, path: Path) -> None:
    with device.load(path, enable_prefix_caching=False, num_threads=1) as engine:
        prompt = ids_of(150, 61)
        (first,) = turn(engine, 1, prompt)
        for session_id in (2, None):
            (other,) = turn(engine, session_id, prompt)
            assert other.usage.cached_tokens == 0
            assert device.content([other]) == device.content([first])
        (second,) = turn(engine, 1, ids_of(5, 62))
        assert second.usage.cached_tokens == 169
        for session_id in (1, 2):
            engine.end_session(session_id)
        turn(engine, None, [1])  # the engine's thread has freed their blocks by now
        stats = engine.stats()
        assert stats.blocks_active == stats.blocks_cached == 0


def test_the_stop_token_is_part_of_the_history(device: Device, roomy: Engine, fresh: Fresh) -> None:
    prompt = ids_of(30, 70)
    shown = turn(roomy, None, prompt)[0].token_ids.tolist()
    stop = shown[7]
    place = shown.index(stop)
    (output,) = turn(roomy, 7, prompt, stop_token_ids=[stop])
    assert output.finish_reason == "stop"
    assert output.token_ids.tolist() == shown[:place]
    ids = [*prompt, *shown[: place + 1]]
    assert history(roomy, 7) == ids
    new = ids_of(5, 71)
    assert device.content(turn(roomy, 7, new)) == device.content(fresh.run([*ids, *new]))
    roomy.end_session(7)


def test_a_stop_sequence_is_part_of_the_history(
    device: Device, roomy: Engine, fresh: Fresh
) -> None:
    prompt = ids_of(30, 72)
    shown = turn(roomy, None, prompt)[0].token_ids.tolist()
    (output,) = turn(roomy, 8, prompt, stop_words=[shown[4:7]])
    assert output.token_ids.tolist() == shown[:4]
    ids = [*prompt, *shown[:7]]
    assert history(roomy, 8) == ids
    assert device.content(turn(roomy, 8, [3])) == device.content(fresh.run([*ids, 3]))
    roomy.end_session(8)


def test_the_history_goes_on_with_the_first_continuation(
    device: Device, roomy: Engine, fresh: Fresh
) -> None:
    options: dict[str, Any] = {"n": 3, "do_sample": True, "random_seed": 8}
    prompt = ids_of(90, 80)
    outputs = turn(roomy, 9, prompt, **options)
    assert device.content(outputs) == device.content(fresh.run(prompt, **options))
    ids = [*prompt, *outputs[0].token_ids.tolist()]
    assert history(roomy, 9) == ids
    (output,) = turn(roomy, 9, [4, 5])
    assert output.usage.cached_tokens == len(ids) - 1
    assert device.content([output]) == device.content(fresh.run([*ids, 4, 5]))
    roomy.end_session(9)


def test_prompt_logprobs_cover_the_history(device: Device, roomy: Engine, fresh: Fresh) -> None:
    turn(roomy, 10, ids_of(100, 90))
    ids = history(roomy, 10)
    (output,) = turn(roomy, 10, [5, 6], prompt_logprobs=2)
    (expected,) = fresh.run([*ids, 5, 6], prompt_logprobs=2)
    assert output.prompt_logprobs is not None
    assert len(output.prompt_logprobs) == len(ids) + 1
    assert device.content([output]) == device.content([expected])
    (output,) = turn(roomy, 10, [7])
    assert output.usage.computed_tokens == 2
    roomy.end_session(10)


def test_requests_of_a_session_run_in_order(device: Device, roomy: Engine, fresh: Fresh) -> None:
    """Five at once: each goes on where the one before it ended."""
    generator = roomy.create_instance()
    prompts = [ids_of(5 + i, 100 + i) for i in range(5)]
    options: dict[str, Any] = {"max_new_tokens": 9, "ignore_eos": True, "logprobs": 1}
    streams = [
        generator.stream_infer(11, prompt, stream_output=False, **options) for prompt in prompts
    ]
    ids: list[int] = []
    for prompt, stream in zip(prompts, streams, strict=True):
        expected, ids = fresh.history([*ids, *prompt], max_new_tokens=9)
        (outputs,) = stream
        assert device.content(outputs) == device.content(expected)
    assert history(roomy, 11) == ids
    roomy.end_session(11)


def test_beginning_afresh(device: Device, roomy: Engine, fresh: Fresh) -> None:
    prompt = ids_of(20, 110)
    for _ in range(2):
        outputs = turn(roomy, 12, prompt, sequence_start=True)
        assert device.content(outputs) == device.content(fresh.run(prompt))
        assert history(roomy, 12) == [*prompt, *outputs[0].token_ids.tolist()]
    roomy.end_session(12)
    assert roomy.session(12) is None
    assert device.content(turn(roomy, 12, prompt, sequence_end=True)) == device.content(
        fresh.run(prompt)
    )
    assert roomy.session(12) is None


def test_a_history_may_fill_session_len(device: Device, path: Path, fresh: Fresh) -> None:
    with device.load(path, session_len=100, num_threads=1) as engine:
        prompt = ids_of(60, 120)
        turn(engine, 1, prompt)
        with pytest.raises(TooLongError, match=r"80 .* 20 .* 100"):
            turn(engine, 1, [9] * 20)
        ids = history(engine, 1)
        assert len(ids) == 80
        (output,) = turn(engine, 1, [9] * 15)
        assert output.finish_reason == "length"
        (expected,) = fresh.run([*ids, *[9] * 15], max_new_tokens=5)
        assert output.token_ids.tolist() == expected.token_ids.tolist()
        assert len(history(engine, 1)) == 100
        with pytest.raises(TooLongError):
            turn(engine, 1, [9])


def test_dynamic_ntk_shares_what_is_rotated_alike(device: Device, dynamic_path: Path) -> None:
    """Only prompts within the trained length, 100 tokens, and only blocks within it."""
    with (
        load_fresh(device, dynamic_path) as engine,
        device.load(dynamic_path, session_len=512, num_threads=1) as shared,
    ):
        fresh = Fresh(engine)
        ids: list[int] = []
        for i, (length, reused) in enumerate([(70, 0), (5, 89), (2, 64), (20, 0), (3, 0)]):
            new = ids_of(length, 130 + i)
            expected, after = fresh.history([*ids, *new])
            (output,) = turn(shared, 1, new)
            assert device.content([output]) == device.content(expected)
            assert output.usage.cached_tokens == (reused if len(ids) + length <= 100 else 0)
            ids = after


def test_a_turn_that_never_ran_leaves_everything_in_place(device: Device, path: Path) -> None:
    """Also the last, partly filled block, so that the next turn computes what is new."""
    with device.load(path, max_batch_size=1, num_threads=1) as engine:
        turn(engine, 1, ids_of(100, 140))
        generator = engine.create_instance()
        for how in ("cancel", "close", "timeout"):
            before = history(engine, 1)
            busy = generator.stream_infer(None, [3], max_new_tokens=1000, ignore_eos=True)
            next(busy)
            if how == "timeout":
                waiting = generator.stream_infer(1, [4, 5], timeout=1e-6)
                assert list(waiting)[-1][0].finish_reason == "error"
            else:
                waiting = generator.stream_infer(1, [4, 5])
                waiting.cancel() if how == "cancel" else waiting.close()
            busy.close()
            (output,) = turn(engine, 1, [6], max_new_tokens=1)
            assert output.usage == (len(before) + 1, len(before) - 1, 2, 1), how


# Rolling back.


@pytest.mark.parametrize("step", [0, 1, 63, 64, 65, 100, 127, 128, 129, 168, 169, 170])
def test_rolling_back(device: Device, roomy: Engine, fresh: Fresh, step: int) -> None:
    turn(roomy, 20, ids_of(150, 200), sequence_start=True)
    ids = history(roomy, 20)[:step]
    assert len(ids) == step
    (output,) = turn(roomy, 20, [8, 9], step=step)
    expected, after = fresh.history([*ids, 8, 9])
    assert device.content([output]) == device.content(expected)
    assert history(roomy, 20) == after
    # All of the last block that is left, or the full blocks before it.
    assert output.usage.cached_tokens in (min(step, 169), step // 64 * 64)
    assert device.content(turn(roomy, 20, [3])) == device.content(fresh.run([*after, 3]))
    roomy.end_session(20)


def test_rolling_back_again_and_again(device: Device, tiny: Engine, fresh: Fresh) -> None:
    turn(tiny, 1, ids_of(200, 210))
    for step in (150, 170, 140, 20, 41, 3, 0):
        ids = history(tiny, 1)[:step]
        expected, after = fresh.history([*ids, step])
        assert device.content(turn(tiny, 1, [step], step=step)) == device.content(expected)
        assert history(tiny, 1) == after


def test_rolling_back_too_far_changes_nothing(roomy: Engine) -> None:
    turn(roomy, 21, ids_of(10, 220))
    ids = history(roomy, 21)
    with pytest.raises(InvalidArgumentError, match=r"31 .* 30"):
        turn(roomy, 21, [1], step=31)
    assert history(roomy, 21) == ids
    roomy.end_session(21)


# Eviction and preemption.


def test_evicted_histories_are_computed_again(device: Device, tiny: Engine, fresh: Fresh) -> None:
    ids: list[int] = []
    for i in range(3):
        new = ids_of(60, 300 + i)
        before = tiny.stats().evicted_blocks
        evict(tiny)
        assert tiny.stats().evicted_blocks > before or not tiny.config.enable_prefix_caching
        (output,) = turn(tiny, 1, new)
        assert output.usage == (len(ids) + 60, 0, len(ids) + 60, 20)
        expected, ids = fresh.history([*ids, *new])
        assert device.content([output]) == device.content(expected)


@pytest.mark.parametrize("filler", [64, 128, 200, 300, 350, 420])
def test_partly_evicted_histories(device: Device, tiny: Engine, fresh: Fresh, filler: int) -> None:
    """The end of a history goes first, so its beginning may still be there."""
    turn(tiny, 1, ids_of(250, 310))
    ids = history(tiny, 1)
    turn(tiny, 2, ids_of(filler, 311), max_new_tokens=5)
    (output,) = turn(tiny, 1, [7, 8])
    assert output.usage.cached_tokens + output.usage.computed_tokens == len(ids) + 2
    expected, ids = fresh.history([*ids, 7, 8])
    assert device.content([output]) == device.content(expected)
    evict(tiny)
    assert device.content(turn(tiny, 1, [7])) == device.content(fresh.run([*ids, 7]))


def test_preempted_sessions_lose_nothing(device: Device, tiny: Engine, fresh: Fresh) -> None:
    """Six sessions of two turns in a pool that holds less than three of them."""
    generator = tiny.create_instance()
    histories: list[list[int]] = [[] for _ in range(6)]
    for length in (9, 10):
        prompts = [ids_of(length, 320 + i + 10 * length) for i in range(6)]
        (outputs,) = generator.stream_infer(
            list(range(6)),
            prompts,
            max_new_tokens=130,
            ignore_eos=True,
            logprobs=1,
            stream_output=False,
        )
        for i, output in enumerate(outputs):
            expected, histories[i] = fresh.history([*histories[i], *prompts[i]], max_new_tokens=130)
            assert device.content([output]) == device.content(expected)
            assert history(tiny, i) == histories[i]
    assert tiny.stats().preemptions > 0


# Cancelling.


def raise_error(outputs: Sequence[SequenceOutput]) -> None:
    assert outputs[0].error is not None
    raise outputs[0].error


def cancelled_turn(
    engine: Engine, session_id: int, ids: list[int], reads: int, how: str, **options: Any
) -> SequenceOutput | None:
    """Starts a turn, reads some outputs, cancels, and waits until the engine is done with it."""
    options = {"max_new_tokens": 60, "ignore_eos": True} | options
    stream = engine.create_instance().stream_infer(session_id, ids, **options)
    newest: list[SequenceOutput] = []
    for _ in range(reads):
        newest = next(stream, newest)
    if how == "engine":
        engine.cancel(session_id)
    elif how == "stream":
        stream.cancel()
    if how == "close":
        stream.close()
        # Requests of a session run in order: when this one is refused, the one before it is over.
        with pytest.raises(InvalidArgumentError, match="step"):
            raise_error(turn(engine, session_id, [1], step=engine.info.session_len + 1))
        return None
    for newest in stream:  # noqa: B007
        pass
    return newest[0]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    first=st.integers(1, 150),
    second=st.integers(1, 250),
    reads=st.integers(0, 5),
    how=st.sampled_from(["engine", "stream", "close"]),
)
def test_cancelled_turns_keep_what_happened(
    device: Device, tiny: Engine, fresh: Fresh, first: int, second: int, reads: int, how: str
) -> None:
    turn(tiny, 1, ids_of(first, 400), sequence_start=True)
    before = history(tiny, 1)
    new = ids_of(second, 401)
    shown = cancelled_turn(tiny, 1, new, reads, how)
    expected, all_ids = fresh.history([*before, *new], max_new_tokens=60)
    ids = history(tiny, 1)
    # What was fed of the prompt, or the prompt and what was generated.
    assert len(ids) >= len(before)
    assert ids == all_ids[: len(ids)]
    if shown is not None:
        tokens = shown.token_ids.tolist()
        assert tokens == expected[0].token_ids.tolist()[: len(tokens)]
        assert shown.finish_reason in ("cancelled", "length")
        if tokens:
            assert len(ids) == len(before) + len(new) + len(tokens)
        else:  # stopped in its prompt: what was computed of it, at once or in chunks
            fed = shown.usage.cached_tokens + shown.usage.computed_tokens
            assert len(ids) == max(len(before), fed)
    assert device.content(turn(tiny, 1, [5, 6])) == device.content(fresh.run([*ids, 5, 6]))


def test_a_cancelled_first_turn_leaves_a_session(
    device: Device, roomy: Engine, fresh: Fresh
) -> None:
    cancelled_turn(roomy, 30, ids_of(500, 410), 0, "engine")
    ids = history(roomy, 30)
    assert ids == ids_of(500, 410)[: len(ids)] or len(ids) > 500
    new = ids_of(3, 411)
    assert device.content(turn(roomy, 30, new)) == device.content(fresh.run([*ids, *new]))
    roomy.end_session(30)


def test_waiting_turns_are_cancelled_with_the_session(
    device: Device, roomy: Engine, fresh: Fresh
) -> None:
    turn(roomy, 31, ids_of(10, 420))
    generator = roomy.create_instance()
    streams = [
        generator.stream_infer(31, ids_of(20, 421 + i), max_new_tokens=400, ignore_eos=True)
        for i in range(3)
    ]
    next(streams[0])
    assert roomy.cancel(31)
    finals = [list(stream)[-1][0] for stream in streams]
    assert [output.finish_reason for output in finals] == ["cancelled"] * 3
    assert [len(output.token_ids) for output in finals[1:]] == [0, 0]
    ids = history(roomy, 31)
    assert len(ids) == 30 + 20 + len(finals[0].token_ids)
    assert device.content(turn(roomy, 31, [4])) == device.content(fresh.run([*ids, 4]))
    roomy.end_session(31)


def test_a_turn_that_ran_out_of_time_keeps_what_happened(
    device: Device, roomy: Engine, fresh: Fresh
) -> None:
    turn(roomy, 32, ids_of(10, 430))
    before = history(roomy, 32)
    new = ids_of(200, 431)
    generator = roomy.create_instance()
    (outputs,) = generator.stream_infer(
        32, new, max_new_tokens=500, ignore_eos=True, timeout=1e-6, stream_output=False
    )
    assert outputs[0].finish_reason == "error"
    ids = history(roomy, 32)
    assert len(ids) >= len(before)
    assert ids == fresh.history([*before, *new], max_new_tokens=500)[1][: len(ids)]
    assert device.content(turn(roomy, 32, [4])) == device.content(fresh.run([*ids, 4]))
    roomy.end_session(32)


def test_ending_a_session_that_runs(device: Device, roomy: Engine, fresh: Fresh) -> None:
    prompt = ids_of(20, 440)
    stream = roomy.create_instance().stream_infer(33, prompt, max_new_tokens=600, ignore_eos=True)
    next(stream)
    assert roomy.end_session(33)
    assert device.content(turn(roomy, 33, prompt)) == device.content(fresh.run(prompt))
    assert list(stream)[-1][0].finish_reason == "cancelled"
    assert history(roomy, 33)[:20] == prompt
    roomy.end_session(33)


def test_many_sessions_from_many_threads(device: Device, tiny: Engine, fresh: Fresh) -> None:
    """Each thread has its own session; they evict and preempt each other."""
    found: dict[int, list[list[Content]]] = {}

    def talk(session_id: int) -> None:
        found[session_id] = [
            device.content(turn(tiny, session_id, ids_of(20 + 3 * i, 500 + 10 * session_id + i)))
            for i in range(4)
        ]

    threads = [threading.Thread(target=talk, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for session_id in range(8):
        ids: list[int] = []
        for i, shown in enumerate(found[session_id]):
            new = ids_of(20 + 3 * i, 500 + 10 * session_id + i)
            expected, ids = fresh.history([*ids, *new])
            assert shown == device.content(expected)


# Everything together.

PROMPTS = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=90)
OPTIONS = st.fixed_dictionaries(
    {"max_new_tokens": st.integers(1, 70)},
    optional={
        "stop_token_ids": st.just([STOP, 3, 77, 150]),
        "repetition_penalty": st.just(1.3),
        "n": st.just(2),
        "prompt_logprobs": st.just(1),
    },
)
SEEDS = st.none() | st.integers(0, 3)


def sampling(options: dict[str, Any], seed: int | None) -> dict[str, Any]:
    return options if seed is None else options | {"do_sample": True, "random_seed": seed}


class Sessions(RuleBasedStateMachine):
    """Sessions in a pool of eight blocks against plain lists of ids and an engine without either
    sessions or reuse."""

    def __init__(self, device: Device, path: Path, fresh: Fresh) -> None:
        super().__init__()
        self.device = device
        self.path = path
        self.fresh = fresh
        self.ids: dict[int, list[int]] = {}

    @initialize(prefixes=st.booleans(), chunk=st.sampled_from([13, 64, 512]))
    def load(self, prefixes: bool, chunk: int) -> None:
        self.engine = self.device.load(
            self.path,
            num_threads=1,
            max_batch_size=4,
            session_len=400,
            cache_max_entry_count=8,
            max_prefill_token_num=chunk,
            enable_prefix_caching=prefixes,
        )

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            self.engine.close()

    def fits(self, start: Sequence[int], new: Sequence[int]) -> bool:
        return len(start) + len(new) < 400

    def expect(
        self, start: Sequence[int], new: Sequence[int], options: dict[str, Any]
    ) -> tuple[list[Content], list[int]]:
        room = 400 - len(start) - len(new)
        cut = options | {"max_new_tokens": min(options["max_new_tokens"], room)}
        outputs, ids = self.fresh.history([*start, *new], **cut)
        return self.device.content(outputs), ids

    def check_turn(
        self, sid: int, start: list[int], new: list[int], options: dict[str, Any], **how: Any
    ) -> None:
        if not self.fits(start, new):
            with pytest.raises(TooLongError):
                turn(self.engine, sid, new, **options, **how)
            return
        expected, ids = self.expect(start, new, options)
        assert self.device.content(turn(self.engine, sid, new, **options, **how)) == expected
        self.ids[sid] = ids

    @rule(sid=st.integers(0, 3), new=PROMPTS, options=OPTIONS, seed=SEEDS)
    def run_turn(self, sid: int, new: list[int], options: dict[str, Any], seed: int | None) -> None:
        # A draw may fall between two ways to round.
        seed = seed if self.device.exact else None
        self.check_turn(sid, self.ids.get(sid, []), new, sampling(options, seed))

    @rule(sid=st.integers(0, 3), new=PROMPTS, options=OPTIONS)
    def begin_afresh(self, sid: int, new: list[int], options: dict[str, Any]) -> None:
        self.check_turn(sid, [], new, options, sequence_start=True)

    @rule(
        sid=st.integers(0, 3),
        back=st.integers(0, 70) | st.integers(0, 400),
        new=PROMPTS,
        options=OPTIONS,
    )
    def roll_back(self, sid: int, back: int, new: list[int], options: dict[str, Any]) -> None:
        ids = self.ids.get(sid, [])
        step = max(len(ids) - back, 0)
        self.check_turn(sid, ids[:step], new, options, step=step)

    @rule(sid=st.integers(0, 3), new=PROMPTS)
    def roll_back_too_far(self, sid: int, new: list[int]) -> None:
        length = len(self.ids.get(sid, []))
        with pytest.raises(InvalidArgumentError, match=f"{length}"):
            turn(self.engine, sid, new, step=length + 1)

    @rule(
        sid=st.integers(0, 3),
        new=PROMPTS,
        reads=st.integers(0, 4),
        how=st.sampled_from(["engine", "stream", "close"]),
    )
    def cancel_turn(self, sid: int, new: list[int], reads: int, how: str) -> None:
        start = self.ids.get(sid, [])
        if not self.fits(start, new):
            return
        _, ids = self.expect(start, new, {"max_new_tokens": 60})
        cancelled_turn(self.engine, sid, new, reads, how)
        left = history(self.engine, sid)
        assert len(left) >= len(start)
        assert left == ids[: len(left)]
        self.ids[sid] = left

    @rule(new=st.lists(PROMPTS, min_size=2, max_size=4), options=OPTIONS)
    def run_turns_of_all_sessions(self, new: list[list[int]], options: dict[str, Any]) -> None:
        starts = [self.ids.get(sid, []) for sid in range(len(new))]
        if not all(map(self.fits, starts, new)):
            return
        options = {"ignore_eos": True, "logprobs": 1} | options
        (outputs,) = self.engine.create_instance().stream_infer(
            list(range(len(new))), new, stream_output=False, **options
        )
        for sid, start in enumerate(starts):
            expected, ids = self.expect(start, new[sid], options)
            assert self.device.content([o for o in outputs if o.index == sid]) == expected
            self.ids[sid] = ids

    @rule(sid=st.integers(0, 3), new=st.lists(PROMPTS, min_size=2, max_size=3))
    def queue_turns_of_one_session(self, sid: int, new: list[list[int]]) -> None:
        ids = self.ids.get(sid, [])
        generator = self.engine.create_instance()
        options: dict[str, Any] = {"max_new_tokens": 5, "ignore_eos": True, "logprobs": 1}
        if not self.fits(ids, [0] * sum(len(prompt) + 5 for prompt in new)):
            return
        streams = [
            generator.stream_infer(sid, prompt, stream_output=False, **options) for prompt in new
        ]
        for prompt, stream in zip(new, streams, strict=True):
            expected, ids = self.expect(ids, prompt, options)
            (outputs,) = stream
            assert self.device.content(outputs) == expected
        self.ids[sid] = ids

    @rule(sid=st.integers(0, 3))
    def end(self, sid: int) -> None:
        assert self.engine.end_session(sid) == (sid in self.ids)
        self.ids.pop(sid, None)

    @rule(length=st.integers(1, 398), seed=st.integers(0, 2))
    def fill(self, length: int, seed: int) -> None:
        ids = ids_of(length, seed)
        expected, _ = self.expect([], ids, {"max_new_tokens": 3})
        assert self.device.content(turn(self.engine, None, ids, max_new_tokens=3)) == expected

    @invariant()
    def histories_are_right(self) -> None:
        for sid in range(4):
            if sid in self.ids:
                assert history(self.engine, sid) == self.ids[sid]
            else:
                assert self.engine.session(sid) is None

    @invariant()
    def nothing_is_held(self) -> None:
        # The engine's thread drops an ended session a moment later.
        stats = self.engine.stats()
        for _ in range(5000):
            if stats.sessions == len(self.ids):
                break
            time.sleep(0.001)
            stats = self.engine.stats()
        assert stats.sessions == len(self.ids)
        assert (stats.running, stats.waiting, stats.blocks_active) == (0, 0, 0)
        assert stats.blocks_free + stats.blocks_cached == 8
        assert self.engine.health()


@pytest.mark.parametrize("model", ["path", "dynamic_path"])
def test_sessions_equal_a_naive_model(
    model: str, device: Device, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(model)
    with load_fresh(device, path) as engine:
        run_state_machine_as_test(
            functools.partial(Sessions, device, path, Fresh(engine)),  # type: ignore[arg-type]
            settings=settings(max_examples=40, stateful_step_count=25, deadline=None),
        )
