"""Treadle through its public Python API."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import treadle
from bench.engine.paths import ModelPaths
from bench.engine.peers.base import Ids, Peer, Request, SecondTurn, Settings


class TreadlePeer(Peer):
    # Enough for 32 requests of 768 tokens, and for a session of 2,048 beside them.
    BLOCKS = 512
    # The memory case reserves what llama.cpp does there: one sequence of 2,048 tokens.
    MEMORY_BLOCKS = 32

    def version(self) -> str:
        return f"treadle {treadle.__version__}"

    def load(self, paths: ModelPaths, threads: int) -> None:
        self._paths = paths
        self._threads = threads
        self._engine: Any = None
        self._next_session = 1

    def _running(self, blocks: int = BLOCKS) -> Any:
        """The engine; made when it is first needed, since the memory case wants another pool."""
        if self._engine is None:
            self._engine = treadle.Engine.from_pretrained(
                str(self._paths.hf),
                device="cpu",
                num_threads=self._threads,
                session_len=2048,
                cache_max_entry_count=blocks,
            )
            self._generator = self._engine.create_instance()
        return self._engine

    def _stream(self, ids: Ids, n_new: int, session: int | None = None) -> Any:
        self._running()
        return self._generator.stream_infer(
            session, [list(ids)], max_new_tokens=n_new, do_sample=False, ignore_eos=True
        )

    def greedy(self, prompt: Ids, n_new: int) -> list[int]:
        out: list[int] = []
        for outputs in self._stream(prompt, n_new):
            out = outputs[0].token_ids.tolist()
        return out

    def decode_speed(self, prompt: Ids, n_new: int, settings: Settings) -> float:
        first: tuple[float, int] | None = None
        made = 0
        for outputs in self._stream(prompt, n_new):
            _, made = outputs[0]
            if first is None and made:
                first = (time.perf_counter(), made)
        if first is None or made != n_new:
            raise RuntimeError(f"treadle made {made} tokens where {n_new} were asked for")
        return (made - first[1]) / (time.perf_counter() - first[0])

    def _ttft(self, ids: Ids, session: int | None = None) -> float:
        start = time.perf_counter()
        for outputs in self._stream(ids, 1, session):
            if outputs[0].error:
                raise outputs[0].error
        return time.perf_counter() - start

    def prefill_speed(self, ids: Ids, settings: Settings) -> float:
        self._running()
        return len(ids) / self._ttft(ids)

    def batch_throughput(self, requests: Sequence[Request], settings: Settings) -> float:
        self._running()
        configs = [
            treadle.GenerationConfig(max_new_tokens=r.n_new, do_sample=False, ignore_eos=True)
            for r in requests
        ]
        prompts = [r.prompt for r in requests]
        start = time.perf_counter()
        (outputs,) = self._generator.stream_infer(None, prompts, configs, stream_output=False)
        seconds = time.perf_counter() - start
        made = [len(o.token_ids) for o in outputs]
        if made != [r.n_new for r in requests]:
            raise RuntimeError(f"treadle made other lengths than asked for: {made}")
        return sum(made) / seconds

    def second_turn(self, history: Ids, new: Ids) -> SecondTurn | None:
        engine = self._running()
        session, self._next_session = self._next_session, self._next_session + 1
        self._ttft(history, session)
        before = engine.stats().computed_tokens
        kept = self._ttft(new, session)
        computed = engine.stats().computed_tokens - before
        engine.end_session(session)
        # Another first token, so that no kept block matches: the whole history is computed.
        changed = [history[0] + 1, *history[1:], *new]
        return SecondTurn(kept, self._ttft(changed), computed)

    def memory_run(self, prompt: Ids, n_new: int) -> int:
        engine = self._running(self.MEMORY_BLOCKS)
        self.greedy(prompt, n_new)
        return int(engine.info.kv_pool_bytes)
