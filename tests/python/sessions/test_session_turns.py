"""A session gives what resending its whole history to a fresh engine gives: bit for bit on the CPU;
on a GPU the same tokens, with log-probabilities as close as half precision is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from devices import Device
from session_turns import Fresh, history, ids_of, load_fresh, turn
from treadle import Engine
from treadle.errors import TooLongError


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
