"""A session gives what resending its whole history to a fresh engine gives, in any order of
requests, ends and roll-backs: bit for bit on the CPU; on a GPU the same tokens, with
log-probabilities as close as half precision is."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from devices import Content, Device
from session_turns import STOP, VOCAB, Fresh, cancelled_turn, history, ids_of, load_fresh, turn
from treadle.errors import InvalidArgumentError, TooLongError

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
