"""Hugging Face transformers on torch CPU (eager forward, sdpa attention, dynamic cache)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
import transformers

from bench.engine.paths import ModelPaths
from bench.engine.peers.base import Ids, Peer, Request, SecondTurn, Settings


class TransformersPeer(Peer):
    def __init__(self, dtype: str) -> None:
        self._dtype = dtype

    def version(self) -> str:
        return f"transformers {transformers.__version__} torch {torch.__version__} {self._dtype}"

    def variants(self, case: str) -> list[Settings]:
        return [{"group": g} for g in (32, 16, 8)] if case == "batch" else [{}]

    def load(self, paths: ModelPaths, threads: int) -> None:
        torch.set_num_threads(threads)
        hub: Any = transformers  # its functions carry no types
        hub.utils.logging.set_verbosity_error()
        hub.utils.logging.disable_progress_bar()
        self._model = hub.AutoModelForCausalLM.from_pretrained(
            paths.hf, dtype=getattr(torch, self._dtype)
        ).eval()
        self._model.generation_config = hub.GenerationConfig(
            do_sample=False, eos_token_id=None, pad_token_id=0, bos_token_id=1
        )

    @torch.inference_mode()
    def _generate(self, prompts: Sequence[Ids], n_new: int) -> torch.Tensor:
        width = max(len(p) for p in prompts)
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, p in enumerate(prompts):
            ids[row, width - len(p) :] = torch.tensor(p)
            mask[row, width - len(p) :] = 1
        out = self._model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=n_new)
        new: torch.Tensor = out[:, width:]
        if new.shape[1] != n_new:
            raise RuntimeError(f"transformers made {new.shape[1]} tokens instead of {n_new}")
        return new

    def greedy(self, prompt: Ids, n_new: int) -> list[int]:
        ids: list[int] = self._generate([prompt], n_new)[0].tolist()
        return ids

    def decode_speed(self, prompt: Ids, n_new: int, settings: Settings) -> float:
        start = time.perf_counter()
        self._generate([prompt], 1)
        first = time.perf_counter()
        self._generate([prompt], n_new)
        return (n_new - 1) / (time.perf_counter() - first - (first - start))

    @torch.inference_mode()
    def prefill_speed(self, ids: Ids, settings: Settings) -> float:
        start = time.perf_counter()
        logits = self._model(torch.tensor([ids]), use_cache=True, logits_to_keep=1).logits
        int(logits.argmax())
        return len(ids) / (time.perf_counter() - start)

    def batch_throughput(self, requests: Sequence[Request], settings: Settings) -> float:
        size = int(str(settings["group"]))
        order = sorted(requests, key=lambda r: (r.n_new, len(r.prompt)))
        start = time.perf_counter()
        for i in range(0, len(order), size):
            group = order[i : i + size]
            self._generate([r.prompt for r in group], group[-1].n_new)
        # Only what was asked for counts; what a short request makes while it waits for the
        # longest of its group does not.
        return sum(r.n_new for r in order) / (time.perf_counter() - start)

    @torch.inference_mode()
    def second_turn(self, history: Ids, new: Ids) -> SecondTurn | None:
        def ttft(ids: Ids, cache: transformers.Cache | None) -> float:
            start = time.perf_counter()
            out = self._model(
                torch.tensor([ids]), past_key_values=cache, use_cache=True, logits_to_keep=1
            )
            int(out.logits.argmax())
            return time.perf_counter() - start

        cache = transformers.DynamicCache()
        ttft(history, cache)
        return SecondTurn(ttft(new, cache), ttft([*history, *new], None), len(new))
