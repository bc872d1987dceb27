"""What the harness asks of an engine. One instance lives in a process of its own."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass

from bench.engine.paths import ModelPaths

Ids = Sequence[int]
Settings = dict[str, object]


@dataclass(frozen=True)
class Request:
    """One greedy request: its prompt and the exact number of tokens to generate."""

    prompt: list[int]
    n_new: int


@dataclass(frozen=True)
class SecondTurn:
    """The second turn of a session; times in seconds, `computed` in prompt tokens
    (-1: the engine does not say)."""

    ttft_kept: float
    ttft_resent: float
    computed: int


class Peer(abc.ABC):
    """An engine under test. Everything is greedy and ignores end-of-sequence tokens.

    `settings` are per case ("decode", "prefill", "batch"); `variants` lists what is worth trying,
    and the harness keeps the fastest, so that every engine is shown at its best."""

    def variants(self, case: str) -> list[Settings]:
        """The settings to try for `case`; the first one is the default."""
        return [{}]

    @abc.abstractmethod
    def version(self) -> str:
        """The engine's name and version."""

    @abc.abstractmethod
    def load(self, paths: ModelPaths, threads: int) -> None:
        """Loads the model; later calls use exactly `threads` threads."""

    @abc.abstractmethod
    def greedy(self, prompt: Ids, n_new: int) -> list[int]:
        """The `n_new` greedy ids that follow `prompt`."""

    @abc.abstractmethod
    def decode_speed(self, prompt: Ids, n_new: int, settings: Settings) -> float:
        """Tokens per second of one sequence, from its first new token to its last."""

    @abc.abstractmethod
    def prefill_speed(self, ids: Ids, settings: Settings) -> float:
        """Prompt tokens per second until the first new token is known."""

    @abc.abstractmethod
    def batch_throughput(self, requests: Sequence[Request], settings: Settings) -> float:
        """New tokens per second over all `requests`, which all arrive at once."""

    def second_turn(self, history: Ids, new: Ids) -> SecondTurn | None:
        """A first turn of `history`, then `new`, with the state kept and without; None where an
        engine keeps no state between calls."""
        return None

    def memory_run(self, prompt: Ids, n_new: int) -> int:
        """Runs one request for the memory case and returns the bytes of the KV cache that was
        reserved for it, 0 where that is not known."""
        self.greedy(prompt, n_new)
        return 0
