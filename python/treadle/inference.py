"""Requests under way: submission, and feeding what the engine sends to their sequences.

Waiting is not here: generator.py waits on a thread, aio.py in an event loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from treadle.errors import DeviceError, ShutdownError, TreadleError
from treadle.outputs import SequenceOutput, TokenIds
from treadle.sequence import SequenceState

if TYPE_CHECKING:
    from treadle import _engine
    from treadle.engine import Engine
    from treadle.sampling import ResolvedConfig
    from treadle.streamed_text import StreamedText


@dataclass(frozen=True)
class RequestSpec:
    """One prompt and how to run it."""

    input_ids: TokenIds
    config: ResolvedConfig
    index: int = 0
    session_id: int | None = None
    session_mode: str = "auto"
    end_session: bool = False
    step: int | None = None
    priority: int = 0
    timeout: float | None = None
    #: The text goes on from the prompt's; otherwise it is what its own ids decode to.
    continues_text: bool = False


class ActiveRequest:
    """One submitted prompt with its n continuations."""

    def __init__(self, engine: Engine, spec: RequestSpec) -> None:
        """Submits. Raises TreadleError when the engine refuses."""
        self._engine = engine
        self.spec = spec
        self.states = self._make_states()
        self.stream: _engine.Stream | None = engine._submit(spec)

    @classmethod
    def refused(cls, engine: Engine, spec: RequestSpec, error: TreadleError) -> ActiveRequest:
        """A request that never ran; its sequences end with the error."""
        self = cls.__new__(cls)
        self._engine = engine
        self.spec = spec
        self.states = self._make_states()
        self.stream = None
        for state in self.states:
            state.fail(error)
        return self

    def _make_states(self) -> list[SequenceState]:
        config = self.spec.config
        return [
            SequenceState(config, self._make_text(), index=self.spec.index, continuation=i)
            for i in range(config.n)
        ]

    def _make_text(self) -> StreamedText | None:
        if not self.spec.config.needs_text:
            return None
        from treadle.streamed_text import StreamedText

        context = self.spec.input_ids.tolist() if self.spec.continues_text else ()
        return StreamedText(self.spec.config, self._engine.tokenizer, context)

    def feed(self, output: _engine.Output) -> bool:
        """True when a caller can see a difference."""
        changed = self.states[output.index].feed(output)
        if changed and self.finished:
            self._end_at_stop_words()
        return changed

    def _end_at_stop_words(self) -> None:
        """The engine knows nothing of words in the text, so it may be some tokens further."""
        if any(state.tokens_to_stop is not None for state in self.states):
            self.cancel()
        first = self.states[0]  # its tokens become the session's
        if (
            first.tokens_to_stop is not None
            and self.spec.session_id is not None
            and not self.spec.end_session
        ):
            length = first.usage.prompt_tokens + first.tokens_to_stop
            self._engine._shorten_session(self.spec, length)

    @property
    def finished(self) -> bool:
        return all(state.finish_reason is not None for state in self.states)

    def cancel(self) -> None:
        if self.stream is not None:
            self.stream.cancel()

    def release(self) -> None:
        """Lets go of the stream, which cancels what still runs."""
        self.stream = None


class InferenceCall:
    """The requests of one call of stream_infer."""

    def __init__(self, engine: Engine, specs: Sequence[RequestSpec]) -> None:
        """Submits all. What the engine refuses is raised when it is the only prompt, else it is the
        result of that prompt and the others run."""
        self.requests: list[ActiveRequest] = []
        try:
            for spec in specs:
                try:
                    self.requests.append(ActiveRequest(engine, spec))
                except TreadleError as error:
                    if len(specs) == 1 or isinstance(error, ShutdownError | DeviceError):
                        raise
                    self.requests.append(ActiveRequest.refused(engine, spec, error))
        except BaseException:
            self.close()
            raise

    @property
    def finished(self) -> bool:
        return all(request.finished for request in self.requests)

    def take(self) -> list[SequenceOutput]:
        """One output for each prompt and continuation, the prompt's n continuations together."""
        return [state.take() for request in self.requests for state in request.states]

    def cancel(self) -> None:
        for request in self.requests:
            request.cancel()

    def close(self) -> None:
        for request in self.requests:
            request.release()


#: Seconds in which the other outputs of the same step arrive.
STEP_GATHER_S = 0.0003


def gather_time(stream_output: bool, num_requests: int, elapsed: float) -> float:
    """Seconds to let outputs gather after the first, so that waking does not cost more than it
    brings: those of one step when streaming several requests; when only the end is asked for,
    little against the time that has passed already."""
    if stream_output:
        return STEP_GATHER_S if num_requests > 1 else 0.0
    return min(0.02, 0.05 * elapsed)
