"""llama.cpp through the low-level API of llama-cpp-python: one `llama_decode` per step, so Python
adds a few microseconds to a step and nothing per layer."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import llama_cpp
import numpy as np

from bench.engine.paths import ModelPaths
from bench.engine.peers.base import Ids, Peer, Request, SecondTurn, Settings

# llama.cpp keeps the pointer, so this must outlive every call.
_QUIET = llama_cpp.llama_log_callback(lambda level, text, user: None)


class _Context:
    """A llama_context with a reusable batch whose arrays are seen through numpy."""

    def __init__(self, model: Any, vocab: int, threads: int, tokens: int, seqs: int, s: Settings):
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = tokens
        params.n_batch = params.n_ubatch = min(int(str(s["n_ubatch"])), tokens)
        params.n_seq_max = seqs
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = int(bool(s["flash_attn"]))
        params.kv_unified = bool(s.get("kv_unified", True))
        params.no_perf = True
        self.n_batch = int(params.n_batch)
        self._vocab = vocab
        self._ctx = llama_cpp.llama_init_from_model(model, params)
        if not self._ctx:
            raise RuntimeError(f"llama.cpp could not make a context of {tokens} tokens")
        self._memory = llama_cpp.llama_get_memory(self._ctx)
        self._batch = llama_cpp.llama_batch_init(self.n_batch, 0, 1)

        def view(pointer: Any, dtype: type) -> Any:
            return np.ctypeslib.as_array(pointer, (self.n_batch,)).view(dtype)

        self._token = view(self._batch.token, np.int32)
        self._pos = view(self._batch.pos, np.int32)
        self._logits = view(self._batch.logits, np.int8)
        self._n_seq_id = view(self._batch.n_seq_id, np.int32)
        self._n_seq_id[:] = 1
        self._seq_id = [self._batch.seq_id[i] for i in range(self.n_batch)]

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(self._memory, False)

    def truncate(self, length: int, seq: int = 0) -> None:
        llama_cpp.llama_memory_seq_rm(self._memory, seq, length, -1)

    def put(self, at: int, tokens: Ids, pos: int, seq: int, want: bool) -> int:
        """Adds a run of one sequence's tokens at row `at`; returns the next free row."""
        end = at + len(tokens)
        self._token[at:end] = tokens
        self._pos[at:end] = np.arange(pos, pos + len(tokens))
        self._logits[at:end] = 0
        self._logits[end - 1] = want
        for row in range(at, end):
            self._seq_id[row][0] = seq
        return end

    def run(self, rows: int) -> None:
        self._batch.n_tokens = rows
        status = llama_cpp.llama_decode(self._ctx, self._batch)
        if status != 0:
            raise RuntimeError(f"llama_decode of {rows} tokens returned {status}")

    def best(self, row: int) -> int:
        """The arg max of the logits of batch row `row`."""
        logits = llama_cpp.llama_get_logits_ith(self._ctx, row)
        return int(np.ctypeslib.as_array(logits, (self._vocab,)).argmax())

    def prefill(self, ids: Ids, pos: int = 0) -> int:
        """Feeds `ids` of sequence 0 and returns the greedy next token."""
        rows = 0
        for i in range(0, len(ids), self.n_batch):
            chunk = ids[i : i + self.n_batch]
            rows = self.put(0, chunk, pos + i, 0, i + len(chunk) == len(ids))
            self.run(rows)
        return self.best(rows - 1)

    def step(self, token: int, pos: int) -> int:
        """Feeds one token of sequence 0 (set up by `put` once) and returns the next."""
        self._token[0] = token
        self._pos[0] = pos
        self.run(1)
        return self.best(0)


@dataclass
class _Running:
    request: Request
    fed: int = 0
    made: int = 0
    last: int = 0


class LlamaCppPeer(Peer):
    def version(self) -> str:
        return f"llama-cpp-python {llama_cpp.__version__}"

    def variants(self, case: str) -> list[Settings]:
        base: list[Settings] = [{"flash_attn": f, "n_ubatch": 512} for f in (True, False)]
        if case != "batch":
            return base
        # Flash attention off was never ahead in this case; how many sequences run at once matters
        # most: on a CPU fewer are often faster.
        return [
            {**base[0], "kv_unified": u, "prefill_first": p, "parallel": n}
            for n, u, p in (
                (32, True, False),
                (32, True, True),
                (32, False, False),
                (32, False, True),
                (8, True, False),
                (8, False, False),
                (4, True, False),
                (4, False, False),
                (2, False, False),
                (1, True, False),
            )
        ]

    def load(self, paths: ModelPaths, threads: int) -> None:
        llama_cpp.llama_log_set(_QUIET, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(str(paths.gguf).encode(), params)
        if not self._model:
            raise RuntimeError(f"llama.cpp could not load {paths.gguf}")
        self._vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._threads = threads
        self._contexts: dict[str, _Context] = {}

    def _context(self, s: Settings, tokens: int = 2048, seqs: int = 1) -> _Context:
        key = f"{tokens} {seqs} {s}"
        if key not in self._contexts:
            self._contexts[key] = _Context(self._model, self._vocab, self._threads, tokens, seqs, s)
        self._contexts[key].clear()
        return self._contexts[key]

    def greedy(self, prompt: Ids, n_new: int) -> list[int]:
        ctx = self._context(self.variants("decode")[0])
        out = [ctx.prefill(prompt)]
        ctx.put(0, out, len(prompt), 0, True)
        while len(out) < n_new:
            out.append(ctx.step(out[-1], len(prompt) + len(out) - 1))
        return out

    def decode_speed(self, prompt: Ids, n_new: int, settings: Settings) -> float:
        ctx = self._context(settings)
        token, pos = ctx.prefill(prompt), len(prompt)
        ctx.put(0, [token], pos, 0, True)
        start = time.perf_counter()
        for i in range(n_new - 1):
            token = ctx.step(token, pos + i)
        return (n_new - 1) / (time.perf_counter() - start)

    def prefill_speed(self, ids: Ids, settings: Settings) -> float:
        ctx = self._context(settings)
        start = time.perf_counter()
        ctx.prefill(ids)
        return len(ids) / (time.perf_counter() - start)

    def batch_throughput(self, requests: Sequence[Request], settings: Settings) -> float:
        parallel = min(int(str(settings["parallel"])), len(requests))
        sizes = sorted((len(r.prompt) + r.n_new for r in requests), reverse=True)
        # Without a unified cache every sequence owns an equal share of it.
        tokens = sum(sizes[:parallel]) if settings["kv_unified"] else sizes[0] * parallel
        ctx = self._context(settings, -(-tokens // 256) * 256, parallel)
        waiting, live = list(reversed(requests)), dict[int, _Running]()
        start = time.perf_counter()
        while waiting or live:
            for seq in range(parallel):
                if waiting and seq not in live:
                    live[seq] = _Running(waiting.pop())
            self._batch_step(ctx, live, bool(settings["prefill_first"]))
        return sum(r.n_new for r in requests) / (time.perf_counter() - start)

    def _batch_step(self, ctx: _Context, live: dict[int, _Running], prefill_first: bool) -> None:
        """One step of continuous batching as llama.cpp's server does it: a token of every decoding
        sequence, and prompts in the rest of the batch. With `prefill_first` a step is either."""
        waiting = any(r.fed < len(r.request.prompt) for r in live.values())
        row, wanted = 0, []
        if not (prefill_first and waiting):
            for seq, r in live.items():
                if r.made:
                    row = ctx.put(row, [r.last], r.fed, seq, True)
                    r.fed += 1
                    wanted.append((row - 1, seq))
        for seq, r in live.items():
            chunk = r.request.prompt[r.fed : r.fed + ctx.n_batch - row] if not r.made else []
            if chunk:
                done = r.fed + len(chunk) == len(r.request.prompt)
                row = ctx.put(row, chunk, r.fed, seq, done)
                r.fed += len(chunk)
                if done:
                    wanted.append((row - 1, seq))
        ctx.run(row)
        for at, seq in wanted:
            r = live[seq]
            r.last, r.made = ctx.best(at), r.made + 1
            if r.made == r.request.n_new:
                ctx.truncate(0, seq)
                del live[seq]

    def second_turn(self, history: Ids, new: Ids) -> SecondTurn | None:
        ctx = self._context(self.variants("prefill")[0])
        ctx.prefill(history)
        start = time.perf_counter()
        ctx.prefill(new, len(history))
        kept = time.perf_counter() - start
        ctx.clear()
        start = time.perf_counter()
        ctx.prefill([*history, *new])
        return SecondTurn(kept, time.perf_counter() - start, len(new))

    def memory_run(self, prompt: Ids, n_new: int) -> int:
        self.greedy(prompt, n_new)
        heads = llama_cpp.llama_model_n_head_kv(self._model)
        head_dim = llama_cpp.llama_model_n_embd(self._model) // llama_cpp.llama_model_n_head(
            self._model
        )
        layers = llama_cpp.llama_model_n_layer(self._model)
        return int(2048 * layers * 2 * heads * head_dim * 2)
