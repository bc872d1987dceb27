"""CTranslate2 through `Generator.generate_batch`."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import ctranslate2

from bench.engine.paths import ModelPaths
from bench.engine.peers.base import Ids, Peer, Request, Settings


class CTranslate2Peer(Peer):
    def __init__(self, compute_type: str) -> None:
        self._compute_type = compute_type

    def version(self) -> str:
        return f"ctranslate2 {ctranslate2.__version__} {self._compute_type}"

    def variants(self, case: str) -> list[Settings]:
        if case != "batch":
            return [{}]
        # Prompts of a batch go through at once only up to the shortest; hence smaller batches too.
        tried = ((0, 1), (16, 1), (16, 2), (8, 2), (4, 2), (2, 2), (1, 2))
        return [{"max_batch_size": size, "workers": workers} for size, workers in tried]

    def load(self, paths: ModelPaths, threads: int) -> None:
        self._path = paths.ct2_int8 if self._compute_type == "int8" else paths.ct2_float32
        self._threads = threads
        self._generators: dict[int, Any] = {}
        self._tokens: list[str] = json.loads((self._path / "vocabulary.json").read_text())
        self._generator(1)

    def _generator(self, workers: int) -> Any:
        if workers not in self._generators:
            self._generators.clear()  # two copies of the weights would push each other out of cache
            self._generators[workers] = ctranslate2.Generator(
                str(self._path),
                device="cpu",
                compute_type=self._compute_type,
                inter_threads=workers,
                intra_threads=max(1, self._threads // workers),
            )
        return self._generators[workers]

    def _text(self, ids: Ids) -> list[str]:
        return [self._tokens[i] for i in ids]

    def _generate(self, prompt: list[str], n_new: int) -> list[int]:
        result = self._generator(1).generate_batch(
            [prompt],
            max_length=n_new,
            min_length=n_new,
            sampling_topk=1,
            include_prompt_in_result=False,
        )
        ids: list[int] = result[0].sequences_ids[0]
        if len(ids) != n_new:
            raise RuntimeError(f"CTranslate2 made {len(ids)} tokens where {n_new} were asked for")
        return ids

    def greedy(self, prompt: Ids, n_new: int) -> list[int]:
        # min_length forbids the end token; without it the answer may stop early, which is
        # what the comparison of answers wants.
        result = self._generator(1).generate_batch(
            [self._text(prompt)],
            max_length=n_new,
            sampling_topk=1,
            include_prompt_in_result=False,
            return_end_token=True,
        )
        ids: list[int] = result[0].sequences_ids[0]
        return ids

    def decode_speed(self, prompt: Ids, n_new: int, settings: Settings) -> float:
        text = self._text(prompt)
        start = time.perf_counter()
        self._generate(text, 1)
        first = time.perf_counter()
        self._generate(text, n_new)
        # The second call repeats the prefill of the first, which is taken off.
        return (n_new - 1) / (time.perf_counter() - first - (first - start))

    def prefill_speed(self, ids: Ids, settings: Settings) -> float:
        text = self._text(ids)
        start = time.perf_counter()
        self._generate(text, 1)
        return len(ids) / (time.perf_counter() - start)

    def batch_throughput(self, requests: Sequence[Request], settings: Settings) -> float:
        generator = self._generator(int(str(settings["workers"])))
        prompts = [self._text(r.prompt) for r in requests]
        size = int(str(settings["max_batch_size"]))
        # One length serves a whole call, so each call takes requests of like output length and
        # a callback ends every sequence where it should end.
        order = sorted(range(len(requests)), key=lambda i: (requests[i].n_new, i))
        size = size or len(order)
        groups = [order[i : i + size] for i in range(0, len(order), size)]

        def stop_at(group: list[int]) -> Any:
            left = [requests[i].n_new for i in group]

            def stop(step: Any) -> bool:
                left[step.batch_id] -= 1
                return bool(left[step.batch_id] <= 0)

            return stop

        start = time.perf_counter()
        pending = [
            (
                group,
                generator.generate_batch(
                    [prompts[i] for i in group],
                    asynchronous=True,
                    max_length=max(requests[i].n_new for i in group),
                    min_length=max(requests[i].n_new for i in group),
                    sampling_topk=1,
                    include_prompt_in_result=False,
                    callback=stop_at(group),
                ),
            )
            for group in groups
        ]
        made = [
            (requests[i].n_new, len(result.result().sequences_ids[0]))
            for group, results in pending
            for i, result in zip(group, results, strict=True)
        ]
        seconds = time.perf_counter() - start
        wrong = [(asked, got) for asked, got in made if got != asked]
        if wrong:
            raise RuntimeError(f"CTranslate2 made other lengths than asked for: {wrong}")
        return sum(asked for asked, _ in made) / seconds
