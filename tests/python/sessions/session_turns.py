"""Turns of sessions, and the engine that computes every history afresh."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import reference
from devices import Device
from treadle import Engine
from treadle.errors import InvalidArgumentError
from treadle.outputs import SequenceOutput

VOCAB = 200
STOP = 17  # ends a turn where a test asks for it; part of the history, not of the output


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
