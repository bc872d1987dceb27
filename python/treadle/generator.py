"""Streamed generation from token ids."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from treadle import _checks as check
from treadle.errors import InternalError, InvalidArgumentError
from treadle.generation_config import GenerationConfig
from treadle.inference import InferenceCall, RequestSpec, gather_time
from treadle.inputs import InputIds, SessionIds, Steps, session_ids, steps, token_arrays
from treadle.outputs import SequenceOutput
from treadle.sampling import merge_configs

if TYPE_CHECKING:
    from treadle.aio import AsyncInferStream
    from treadle.engine import Engine

_SESSION_MODES = {None: "auto", True: "start", False: "continue"}


class InferStream:
    """Iterates over the outputs of one stream_infer call.

    :meth:`close`, leaving a ``with`` block, letting go of the object and Ctrl-C while waiting all
    cancel what still runs; its session stays usable. One thread may iterate at a time;
    :meth:`cancel` and :meth:`close` may be called from any.
    """

    def __init__(self, engine: Engine, specs: Sequence[RequestSpec], stream_output: bool) -> None:
        from treadle import _engine

        self._finished = True  # for __del__, should the next line raise
        self._call = InferenceCall(engine, specs)
        self._wait_set = _engine.WaitSet()
        self._requests = {
            self._wait_set.add(request.stream): request
            for request in self._call.requests
            if request.stream is not None
        }
        self._stream_output = stream_output
        self._started = time.monotonic()
        self._finished = False

    def __iter__(self) -> InferStream:
        return self

    def __next__(self) -> list[SequenceOutput]:
        try:
            changed = False
            while not (self._call.finished or (changed and self._stream_output)):
                if self._finished:  # perhaps closed by another thread
                    raise StopIteration
                changed = self._read()
        except BaseException:
            self.close()
            raise
        if self._finished:
            raise StopIteration
        outputs = self._call.take()
        if self._call.finished:
            self.close()
        return outputs

    def _read(self) -> bool:
        elapsed = time.monotonic() - self._started
        linger = gather_time(self._stream_output, len(self._wait_set), elapsed)
        events = self._wait_set.wait(linger=linger)
        if not (events or len(self._wait_set) or self._finished):
            raise InternalError("the engine ended a stream without a finish reason")
        changed = False
        for wait_id, output in events:
            changed |= self._requests[wait_id].feed(output)
        return changed

    def cancel(self) -> None:
        """Ends the sequences soon, with finish_reason "cancelled"; go on iterating to see them."""
        self._call.cancel()

    def close(self) -> None:
        """Cancels what still runs and ends the iteration. May be called again."""
        self._finished = True
        for wait_id in self._requests:
            self._wait_set.remove(wait_id)
        self._call.close()

    def __enter__(self) -> InferStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._finished:
            self.close()


class Generator:
    """Runs requests on an engine. Cheap; any number of them may be used, from any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def stream_infer(
        self,
        session_id: SessionIds = None,
        input_ids: InputIds = None,
        gen_config: GenerationConfig | Sequence[GenerationConfig] | None = None,
        *,
        sequence_start: bool | None = None,
        sequence_end: bool = False,
        step: Steps = None,
        stream_output: bool = True,
        priority: int = 0,
        timeout: float | None = None,
        **overrides: Any,
    ) -> InferStream:
        """Generates from token ids; yields lists with one SequenceOutput per sequence.

        session_id: session of each prompt; its history goes before input_ids and is kept in the
            engine, so send only what is new. None runs outside any session.
        input_ids: one prompt or a list of them, each a sequence of ints or an integer array.
        gen_config: options for all prompts, or one for each. Keyword ``overrides`` change single
            options of it: ``stream_infer(0, ids, max_new_tokens=8)``.
        sequence_start: None goes on with the session where it exists, else begins it; True begins
            afresh; False goes on, and an unknown session is an error.
        sequence_end: drop the session afterwards.
        step: first roll the session's history back to this many tokens.
        stream_output: False yields once, at the end.
        priority: higher goes first; first come first served within one priority.
        timeout: seconds after which a sequence ends with a DeadlineExceededError.

        With several prompts, or ``n`` above 1, the list holds the continuations of the first
        prompt, then those of the next (see SequenceOutput.index and .continuation).

        The requests are submitted by the call itself. Errors of the call (a parameter, a closed
        engine) are raised by it. What the engine refuses about one prompt (too long, unknown
        session, full queue) is raised when it is the only one; of several it becomes that prompt's
        result, finish_reason "error" with ``.error``, and the others go on. Whatever happens later
        is always such a result.
        """
        specs = self._specs(
            session_id,
            input_ids,
            gen_config,
            overrides,
            sequence_start=sequence_start,
            sequence_end=sequence_end,
            step=step,
            priority=priority,
            timeout=timeout,
        )
        return InferStream(self._engine, specs, check.flag("stream_output", stream_output))

    def async_stream_infer(
        self,
        session_id: SessionIds = None,
        input_ids: InputIds = None,
        gen_config: GenerationConfig | Sequence[GenerationConfig] | None = None,
        *,
        sequence_start: bool | None = None,
        sequence_end: bool = False,
        step: Steps = None,
        stream_output: bool = True,
        priority: int = 0,
        timeout: float | None = None,
        **overrides: Any,
    ) -> AsyncInferStream:
        """The same for asyncio: ``async for outputs in generator.async_stream_infer(...)``.

        Waits in the running event loop, without a thread and without polling. Cancelling the task
        or ``aclose()`` cancels what still runs.
        """
        from treadle.aio import AsyncInferStream

        specs = self._specs(
            session_id,
            input_ids,
            gen_config,
            overrides,
            sequence_start=sequence_start,
            sequence_end=sequence_end,
            step=step,
            priority=priority,
            timeout=timeout,
        )
        return AsyncInferStream(self._engine, specs, check.flag("stream_output", stream_output))

    def cancel(self, session_id: int) -> bool:
        """See :meth:`Engine.cancel`."""
        return self._engine.cancel(session_id)

    def end_session(self, session_id: int) -> bool:
        """See :meth:`Engine.end_session`."""
        return self._engine.end_session(session_id)

    def _specs(
        self,
        session_id: SessionIds,
        input_ids: InputIds,
        gen_config: GenerationConfig | Sequence[GenerationConfig] | None,
        overrides: dict[str, Any],
        *,
        sequence_start: bool | None,
        sequence_end: bool,
        step: Steps,
        priority: int,
        timeout: float | None,
    ) -> list[RequestSpec]:
        if input_ids is None:
            raise InvalidArgumentError("input_ids is None: give a list of token ids")
        prompts = token_arrays(input_ids, self._engine.info.vocab_size)
        sessions = session_ids(session_id, len(prompts))
        rollbacks = steps(step, len(prompts))
        if sequence_start is not None:
            check.flag("sequence_start", sequence_start)
        check.flag("sequence_end", sequence_end)
        check.integer("priority", priority, -check.MAX_INT32)
        if timeout is not None and check.number("timeout", timeout) <= 0:
            raise check.refuse("timeout", timeout, "it must be above 0 seconds, or None")
        for session, rollback in zip(sessions, rollbacks, strict=True):
            if session is None and (sequence_start is False or rollback is not None):
                option = "sequence_start=False" if rollback is None else f"step={rollback}"
                raise InvalidArgumentError(
                    f"{option} needs a session to go on with: give its session_id"
                )
        configs = [
            self._engine._resolver.resolve(config, overrides)
            for config in merge_configs(gen_config, len(prompts))
        ]
        return [
            RequestSpec(
                input_ids=prompts[i],
                config=configs[i],
                index=i,
                session_id=sessions[i],
                session_mode=_SESSION_MODES[sequence_start],
                end_session=sequence_end,
                step=rollbacks[i],
                priority=priority,
                timeout=timeout,
            )
            for i in range(len(prompts))
        ]
