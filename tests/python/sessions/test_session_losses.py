"""A session gives what resending its whole history to a fresh engine gives, whatever was evicted,
preempted, rolled back or cancelled in between: bit for bit on the CPU; on a GPU the same tokens,
with log-probabilities as close as half precision is."""

from __future__ import annotations

import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devices import Content, Device
from session_turns import Fresh, cancelled_turn, evict, history, ids_of, turn
from treadle import Engine
from treadle.errors import InvalidArgumentError


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
