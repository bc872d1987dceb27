"""What a generation yields."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from treadle.errors import TreadleError

TokenIds: TypeAlias = npt.NDArray[np.int32]

#: None while running. "length": max_new_tokens or session_len was reached.
FinishReason: TypeAlias = Literal["stop", "length", "cancelled", "error"]


class TokenLogprob(NamedTuple):
    token_id: int
    #: Natural logarithm, after penalties and bias, before temperature and truncation.
    logprob: float


class PositionLogprobs(NamedTuple):
    """Log-probabilities at one position."""

    #: The token that stands there.
    chosen: TokenLogprob
    #: The most likely ones, best first; as many as were asked for.
    top: tuple[TokenLogprob, ...]


class Usage(NamedTuple):
    """Token counts of a request; the prompt's include the session's history."""

    prompt_tokens: int = 0
    #: Of the prompt, taken from KV blocks that were already there.
    cached_tokens: int = 0
    #: Of the prompt, run through the model (recomputation included).
    computed_tokens: int = 0
    #: Generated, the stop token included.
    output_tokens: int = 0


class SequenceOutput:
    """One sequence so far. Unpacks to ``(res, tokens)``: all its token ids, and how many."""

    __slots__ = (
        "_logprobs",
        "_num_pieces",
        "_text_pieces",
        "continuation",
        "error",
        "finish_reason",
        "index",
        "new_text",
        "new_token_ids",
        "prompt_logprobs",
        "token_ids",
        "usage",
    )

    def __init__(
        self,
        *,
        token_ids: TokenIds,
        new_tokens: int,
        index: int = 0,
        continuation: int = 0,
        text_pieces: list[str] | None = None,
        new_text: str = "",
        logprobs: list[PositionLogprobs] | None = None,
        prompt_logprobs: list[PositionLogprobs] | None = None,
        finish_reason: FinishReason | None = None,
        error: TreadleError | None = None,
        usage: Usage,
    ) -> None:
        """``text_pieces`` and ``logprobs`` may grow afterwards; the output keeps showing what was
        there when it was made."""
        #: Which of the prompts, and which of its n continuations.
        self.index = index
        self.continuation = continuation
        #: All ids generated so far (int32, read-only), and those that came with this output.
        self.token_ids = token_ids
        self.new_token_ids = token_ids[len(token_ids) - new_tokens :]
        #: The text that came with this output; "" unless asked for with ``return_text=True``.
        self.new_text = new_text
        #: None while running.
        self.finish_reason = finish_reason
        #: The cause when finish_reason is "error".
        self.error = error
        self.usage = usage
        #: For the prompt's tokens from the second on; None until computed or unless asked for.
        self.prompt_logprobs = prompt_logprobs
        self._text_pieces = text_pieces
        self._num_pieces = 0 if text_pieces is None else len(text_pieces)
        self._logprobs = logprobs

    def __iter__(self) -> Iterator[Any]:
        yield self.token_ids
        yield len(self.token_ids)

    @property
    def text(self) -> str | None:
        """All text so far; None unless asked for with ``return_text=True``."""
        if self._text_pieces is None:
            return None
        return "".join(self._text_pieces[: self._num_pieces])

    @property
    def logprobs(self) -> list[PositionLogprobs] | None:
        """One for each of ``token_ids``; None unless asked for."""
        return None if self._logprobs is None else self._logprobs[: len(self.token_ids)]

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    def __repr__(self) -> str:
        state = self.finish_reason or "running"
        text = "" if self._text_pieces is None else f", text={self.text!r}"
        return f"SequenceOutput(token_ids={self.token_ids.tolist()}{text}, {state})"


@dataclass(frozen=True)
class Health:
    """False in a condition when the engine can run no more requests; ``cause`` says why."""

    ok: bool
    cause: str

    def __bool__(self) -> bool:
        return self.ok


@dataclass(frozen=True)
class SessionInfo:
    """A session's history."""

    session_id: int
    #: Everything that was fed and generated, end tokens included.
    token_ids: TokenIds
    #: A request of it is waiting or running.
    busy: bool


@dataclass(frozen=True)
class ModelInfo:
    """What was loaded and what was made of the options. Sizes in bytes, lengths in tokens."""

    architecture: str
    family: str
    #: "cpu" or "cuda:N".
    device: str
    #: Why device="auto" leaves a GPU alone that is there; else empty.
    device_note: str
    #: What a workspace's config.ini gives; else empty.
    model_name: str
    #: Keys of a workspace's config.ini that are LMDeploy's and mean nothing here.
    ignored_keys: str
    #: Of activations: what the device computes in.
    dtype: str
    weight_dtype: str
    kv_dtype: str
    #: int8 KV with the ranges of the model's kv_qparams.safetensors, not each token's own.
    kv_static_ranges: bool
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    #: In force, after all limits.
    session_len: int
    max_batch_size: int
    max_prefill_token_num: int
    eos_token_ids: list[int]
    num_parameters: int
    weight_bytes: int
    workspace_bytes: int
    kv_bytes_per_token: int
    kv_pool_bytes: int
    kv_block_tokens: int
    kv_blocks: int
    num_threads: int


@dataclass(frozen=True)
class EngineStats:
    """A snapshot taken after a step. Gauges are of the moment; the other counts only grow."""

    #: Gauges: sequences in the batch, requests in the line, sessions, KV blocks by state.
    running: int
    waiting: int
    sessions: int
    blocks_free: int
    blocks_active: int
    blocks_cached: int
    requests_submitted: int
    #: Ended by a stop or by length.
    requests_finished: int
    requests_cancelled: int
    #: Refused ones included.
    requests_failed: int
    #: Asked for; of them, run through the model (with recomputation) and taken from blocks.
    prompt_tokens: int
    computed_tokens: int
    prefix_hit_tokens: int
    output_tokens: int
    preemptions: int
    evicted_blocks: int
    #: Copies on write.
    copied_blocks: int
    steps: int
    #: Time in steps, and of it in scheduling, batching and emitting.
    step_seconds: float
    host_seconds: float
    ttft_count: int
    ttft_seconds: float
    itl_count: int
    itl_seconds: float

    @property
    def mean_ttft(self) -> float:
        """Mean seconds from submission to the first token; 0 before there is one."""
        return self.ttft_seconds / self.ttft_count if self.ttft_count else 0.0

    @property
    def mean_itl(self) -> float:
        """Mean seconds between later tokens of a sequence; 0 before there is one."""
        return self.itl_seconds / self.itl_count if self.itl_count else 0.0

    def as_dict(self) -> dict[str, int | float]:
        return dataclasses.asdict(self)
