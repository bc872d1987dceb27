"""The C++ engine. Use the treadle package; this module is its private half."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

class EngineConfig:
    device: str
    dtype: str
    session_len: int
    max_batch_size: int
    cache_max_entry_count: float
    max_prefill_token_num: int
    tp: int
    rope_scaling_factor: float
    use_logn_attn: int
    quant_policy: int
    num_threads: int
    max_queue_size: int
    max_sessions: int
    session_ttl_s: float
    enable_prefix_caching: bool
    random_seed: int
    def __init__(self) -> None: ...

class SamplingParams:
    max_new_tokens: int
    min_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: list[tuple[int, float]]
    bad_words: list[list[int]]
    stop_words: list[list[int]]
    stop_token_ids: list[int]
    ignore_eos: bool
    logprobs: int
    prompt_logprobs: int
    n: int
    seed: int | None
    def __init__(self) -> None: ...

class Output:
    @property
    def index(self) -> int: ...
    @property
    def token_ids(self) -> npt.NDArray[np.int32]: ...
    @property
    def logprobs(self) -> list[tuple[tuple[int, float], list[tuple[int, float]]]]: ...
    @property
    def prompt_logprobs(self) -> list[tuple[tuple[int, float], list[tuple[int, float]]]]: ...
    @property
    def finish_reason(self) -> str: ...
    @property
    def error(self) -> str: ...
    @property
    def error_message(self) -> str: ...
    @property
    def usage(self) -> tuple[int, int, int, int]: ...

class Stream:
    def cancel(self) -> None: ...
    def done(self) -> bool: ...

class WaitSet:
    def __init__(self, *, with_fd: bool = False) -> None: ...
    def add(self, stream: Stream) -> int: ...
    def remove(self, wait_id: int) -> None: ...
    def arm(self, wait_id: int) -> None: ...
    def poll(self) -> list[tuple[int, Output]]: ...
    def wait(self, timeout: float = -1.0, linger: float = 0.0) -> list[tuple[int, Output]]: ...
    def fileno(self) -> int: ...
    def __len__(self) -> int: ...

class Engine:
    @staticmethod
    def load(
        path: str,
        config: EngineConfig,
        *,
        on_load_progress: Callable[[int, int], None] | None = None,
    ) -> Engine: ...
    def submit(
        self,
        input_ids: npt.NDArray[np.int32],
        sampling: SamplingParams,
        *,
        session_id: int | None = None,
        session_mode: str = "auto",
        end_session: bool = False,
        step: int | None = None,
        priority: int = 0,
        timeout_s: float = 0.0,
    ) -> Stream: ...
    def cancel(self, session_id: int) -> bool: ...
    def end_session(self, session_id: int) -> bool: ...
    def session(self, session_id: int) -> tuple[npt.NDArray[np.int32], bool] | None: ...
    def info(self) -> dict[str, Any]: ...
    def stats(self) -> dict[str, Any]: ...
    def health(self) -> tuple[bool, str]: ...
    def close(self, drain_seconds: float = 0.0) -> None: ...

def convert(
    path: str,
    out: str,
    model_name: str,
    options: EngineConfig,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> None: ...
def inspect(path: str, config: EngineConfig) -> dict[str, Any]: ...
def version() -> str: ...
def backends() -> str: ...
def gpus() -> dict[str, Any]: ...
