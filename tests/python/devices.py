"""The devices that the tests run on, and what may be expected of each."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import treadle
from treadle import Engine
from treadle.errors import DeviceError, UnsupportedError
from treadle.outputs import PositionLogprobs, SequenceOutput

#: Heads of other sizes have no kernel on a GPU.
GPU_HEAD_DIMS = (64, 80, 96, 128, 256)


@dataclass(frozen=True)
class Device:
    name: str
    #: The type nearest to float32 that the model can be computed in.
    dtype: str
    #: Largest difference of a log-probability from float32.
    tolerance: float
    #: The same between two ways to compute it, on the small models of `reference`.
    jitter: float
    #: Below this difference of the two best log-probabilities either may be the largest.
    near_tie: float
    #: The same to the last bit in any batch, in whatever chunks, with reused blocks or without.
    exact: bool

    def load(self, path: str | os.PathLike[str], **options: Any) -> Engine:
        """An engine on this device. Tests have several at a time, so none takes most of a GPU."""
        if self.name != "cpu" and "config" not in options:
            options = {"cache_max_entry_count": 2000} | options
        return Engine.from_pretrained(path, **({"device": self.name} | options))

    def fit(self, config: dict[str, Any], *, split: bool = False) -> dict[str, Any]:
        """The configuration of a small model, with sizes that the device has: heads as they come,
        the others multiples of 8. With ``split`` the heads divide the hidden size, for families
        that do not name their size."""
        if self.name == "cpu":
            return config
        config = config | {"intermediate_size": (config["intermediate_size"] + 7) // 8 * 8}
        heads = config["num_attention_heads"]
        size = config.get("head_dim") or config["hidden_size"] // heads
        if size in GPU_HEAD_DIMS:
            return config
        size = GPU_HEAD_DIMS[size // 8 % 4]
        return config | ({"hidden_size": heads * size} if split else {"head_dim": size})

    def content(self, outputs: Sequence[SequenceOutput]) -> list[Content]:
        """What can be compared with the same request's outputs from elsewhere."""
        assert all(o.error is None for o in outputs), [o.error for o in outputs]
        return [
            Content(
                token_ids=output.token_ids.tolist(),
                logprobs=output.logprobs,
                prompt_logprobs=output.prompt_logprobs,
                finish_reason=output.finish_reason,
                tolerance=self.jitter,
            )
            for output in outputs
        ]


@dataclass
class Content:
    """What a sequence gave; log-probabilities are equal within the device's tolerance."""

    token_ids: list[int]
    logprobs: list[PositionLogprobs] | None
    prompt_logprobs: list[PositionLogprobs] | None
    finish_reason: str | None
    tolerance: float

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Content):
            return NotImplemented
        return not self.difference(other)

    def difference(self, other: Content) -> str:
        """In words; empty if they are equal."""
        if self.token_ids != other.token_ids:
            return f"tokens {self.token_ids} and {other.token_ids}"
        if self.finish_reason != other.finish_reason:
            return f"ends by {self.finish_reason} and {other.finish_reason}"
        return self.apart("logprobs", self.logprobs, other.logprobs) or self.apart(
            "prompt_logprobs", self.prompt_logprobs, other.prompt_logprobs
        )

    def apart(
        self,
        name: str,
        mine: list[PositionLogprobs] | None,
        others: list[PositionLogprobs] | None,
    ) -> str:
        if mine is None or others is None or len(mine) != len(others):
            return "" if mine == others else f"{name}: {mine} and {others}"
        for i, (one, other) in enumerate(zip(mine, others, strict=True)):
            if not (one == other if self.tolerance == 0 else self.close_at(one, other)):
                return f"{name}[{i}]: {one} and {other}"
        return ""

    def close_at(self, mine: PositionLogprobs, other: PositionLogprobs) -> bool:
        """The best ones may change places where they are close. A logit's rounding error grows with
        its size, so what is far from the best token may be further apart."""
        pairs = [(mine.chosen, other.chosen), *zip(mine.top, other.top, strict=True)]
        return mine.chosen.token_id == other.chosen.token_id and all(
            a.logprob == b.logprob
            or abs(a.logprob - b.logprob) <= self.tolerance * max(1.0, -a.logprob / 8.0)
            for a, b in pairs
        )


CPU = Device("cpu", "float32", tolerance=1e-4, jitter=0.0, near_tie=1e-4, exact=True)
CUDA = Device("cuda", "float16", tolerance=0.05, jitter=0.03, near_tie=0.05, exact=False)
DEVICES = {device.name: device for device in (CPU, CUDA)}


def of(engine: Engine) -> Device:
    """The device that an engine runs on; what it computes in bfloat16 is eight times as coarse."""
    device = DEVICES[engine.info.device.partition(":")[0]]
    if device.exact or engine.info.kv_dtype != "bfloat16":
        return device
    return replace(
        device,
        dtype="bfloat16",
        tolerance=8 * device.tolerance,
        jitter=8 * device.jitter,
        near_tie=8 * device.near_tie,
    )


@functools.cache
def why_not(name: str) -> str | None:
    """Why a device cannot be used here, in the engine's words; None when it can."""
    try:
        Engine.from_pretrained(
            treadle.demo_model_path(), device=name, cache_max_entry_count=8
        ).close()
    except (UnsupportedError, DeviceError) as error:
        return str(error)
    return None
