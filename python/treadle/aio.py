"""Streamed generation in asyncio.

The engine's thread makes a file descriptor readable when outputs arrive (it never takes the GIL);
the event loop watches that descriptor. So waiting costs neither a thread nor polling.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

from treadle.inference import InferenceCall, RequestSpec, gather_time
from treadle.outputs import SequenceOutput

if TYPE_CHECKING:
    from treadle import _engine
    from treadle.engine import Engine

    Sink = Callable[[int, _engine.Output], None]


class LoopWatcher:
    """Carries outputs into one event loop. It lives while the loop has streams to watch."""

    _of_loop: ClassVar[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopWatcher]] = (
        weakref.WeakKeyDictionary()
    )
    _lock = threading.RLock()  # the garbage collector may come back to it

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        from treadle import _engine

        self._loop = weakref.ref(loop)  # the loop holds this object, through its reader
        self._wait_set = _engine.WaitSet(with_fd=True)
        self._sinks: dict[int, Sink] = {}
        loop.add_reader(self._wait_set.fileno(), self._deliver)

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> LoopWatcher:
        with cls._lock:
            watcher = cls._of_loop.get(loop)
            if watcher is None:
                watcher = cls._of_loop[loop] = cls(loop)
            return watcher

    def add(self, stream: _engine.Stream, sink: Sink) -> int:
        """``sink(id, output)`` is called in the loop; the next call comes only after arm(id)."""
        wait_id = self._wait_set.add(stream)
        self._sinks[wait_id] = sink
        return wait_id

    def arm(self, wait_id: int) -> None:
        self._wait_set.arm(wait_id)

    def remove(self, wait_id: int) -> None:
        """Safe from any thread: the garbage collector may call it from another one."""
        self._wait_set.remove(wait_id)
        self._sinks.pop(wait_id, None)
        if not self._sinks and _running_loop() is self._loop():
            self._retire()

    def _retire(self) -> None:
        loop = self._loop()
        if loop is None or loop.is_closed():
            return
        loop.remove_reader(self._wait_set.fileno())
        with self._lock:
            if self._of_loop.get(loop) is self:
                del self._of_loop[loop]

    def _deliver(self) -> None:
        for wait_id, output in self._wait_set.poll():
            sink = self._sinks.get(wait_id)
            if sink is not None:
                sink(wait_id, output)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class AsyncInferStream:
    """Iterates over the outputs of one async_stream_infer call.

    Cancelling the task that waits, :meth:`aclose` and letting go of the object cancel what still
    runs; its session stays usable. Belongs to the event loop it is first awaited in.
    """

    def __init__(self, engine: Engine, specs: Sequence[RequestSpec], stream_output: bool) -> None:
        self._finished = True  # for __del__, should the next line raise
        self._call = InferenceCall(engine, specs)
        self._stream_output = stream_output
        self._watcher: LoopWatcher | None = None
        self._requests: dict[int, int] = {}  # wait id -> place in the call
        self._to_arm: list[int] = []
        self._wake: asyncio.Future[None] | None = None
        self._changed = False
        self._started = time.monotonic()
        self._finished = False

    def __aiter__(self) -> AsyncInferStream:
        return self

    async def __anext__(self) -> list[SequenceOutput]:
        if self._finished:
            raise StopAsyncIteration
        if self._wake is not None:
            raise RuntimeError("another task is waiting for this stream's next output")
        try:
            while not (self._call.finished or (self._changed and self._stream_output)):
                await self._wait(self._watch())
        except BaseException:
            self.close()
            raise
        self._changed = False
        outputs = self._call.take()
        if self._call.finished:
            self.close()
        return outputs

    def _watch(self) -> LoopWatcher:
        if self._watcher is None:
            self._watcher = LoopWatcher.of(asyncio.get_running_loop())
            # The watcher must not keep this object alive: letting go of it cancels.
            me = weakref.ref(self)

            def sink(wait_id: int, output: _engine.Output) -> None:
                if (stream := me()) is not None:
                    stream._feed(wait_id, output)

            for place, request in enumerate(self._call.requests):
                if request.stream is not None:
                    self._requests[self._watcher.add(request.stream, sink)] = place
        return self._watcher

    async def _wait(self, watcher: LoopWatcher) -> None:
        if not self._stream_output and self._to_arm:
            await asyncio.sleep(gather_time(False, 1, time.monotonic() - self._started))
        for wait_id in self._to_arm:
            watcher.arm(wait_id)
        self._to_arm.clear()
        self._wake = asyncio.get_running_loop().create_future()
        try:
            await self._wake
        finally:
            self._wake = None

    def _feed(self, wait_id: int, output: _engine.Output) -> None:
        if self._finished:
            return
        self._to_arm.append(wait_id)
        self._changed |= self._call.requests[self._requests[wait_id]].feed(output)
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def cancel(self) -> None:
        """Ends the sequences soon, with finish_reason "cancelled"; go on iterating to see them."""
        self._call.cancel()

    async def aclose(self) -> None:
        """Cancels what still runs and ends the iteration. May be called again."""
        self.close()

    def close(self) -> None:
        """:meth:`aclose` for callers that cannot await."""
        self._finished = True
        if self._watcher is not None:
            for wait_id in self._requests:
                self._watcher.remove(wait_id)
            self._requests.clear()
        self._call.close()

    def __del__(self) -> None:
        if not self._finished:
            self.close()
