"""Runs many requests through the engine's continuous batch, with a bounded line."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator
from typing import TYPE_CHECKING

from treadle.errors import DeviceError, QueueFullError, ShutdownError, TreadleError
from treadle.inference import ActiveRequest, RequestSpec, gather_time

if TYPE_CHECKING:
    from treadle.engine import Engine

#: Pause before asking a queue again that others have filled.
_RETRY_S = 0.05


class RequestPool:
    """Keeps as many requests submitted as the engine can use and yields them as they proceed."""

    def __init__(
        self, engine: Engine, specs: Iterable[RequestSpec | ActiveRequest], *, stream: bool
    ) -> None:
        """``specs`` is read as requests finish; an ActiveRequest in it is submitted or refused.
        ``stream``: yield a request whenever something new is there; otherwise once, at its end."""
        from treadle import _engine

        self._engine = engine
        self._specs = iter(specs)
        self._stream = stream
        # Twice the batch, so that the engine never runs dry while finished ones are replaced.
        self._window = min(engine.config.max_queue_size, 2 * engine.info.max_batch_size + 8)
        self._wait_set = _engine.WaitSet()
        self._active: dict[int, ActiveRequest] = {}
        self._refused_by_queue: RequestSpec | None = None

    def run(self) -> Generator[ActiveRequest, None, None]:
        """Closing the iterator cancels what still runs. What the engine refuses is yielded, ended
        by the error; only a closed or broken engine raises."""
        started = time.monotonic()
        try:
            while True:
                yield from self._fill()
                if not self._active:
                    return
                elapsed = time.monotonic() - started
                linger = gather_time(self._stream, len(self._active), elapsed)
                yield from self._read(linger)
        finally:
            for wait_id, request in self._active.items():
                self._wait_set.remove(wait_id)
                request.release()

    def _read(self, linger: float) -> Iterator[ActiveRequest]:
        changed: dict[int, ActiveRequest] = {}
        for wait_id, output in self._wait_set.wait(linger=linger):
            request = self._active[wait_id]
            if request.feed(output) and (self._stream or request.finished):
                changed[wait_id] = request
        for wait_id, request in changed.items():
            if request.finished:
                del self._active[wait_id]
                self._wait_set.remove(wait_id)
                request.release()
            yield request

    def _fill(self) -> Iterator[ActiveRequest]:
        """Submits until the window is full; yields what is refused for good."""
        while len(self._active) < self._window:
            spec = self._refused_by_queue or next(self._specs, None)
            if spec is None:
                return
            self._refused_by_queue = None
            try:
                request = spec if isinstance(spec, ActiveRequest) else self._submit(spec)
            except QueueFullError:
                assert isinstance(spec, RequestSpec)
                self._refused_by_queue = spec
                if self._active:
                    return  # try again when one has finished
                time.sleep(_RETRY_S)
                continue
            if request.stream is None:
                yield request
            else:
                self._active[self._wait_set.add(request.stream)] = request

    def _submit(self, spec: RequestSpec) -> ActiveRequest:
        try:
            return ActiveRequest(self._engine, spec)
        except (ShutdownError, DeviceError, QueueFullError):
            raise
        except TreadleError as error:
            return ActiveRequest.refused(self._engine, spec, error)
