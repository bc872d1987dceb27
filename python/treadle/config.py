"""Engine options."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from treadle import _checks as check

if TYPE_CHECKING:
    from treadle import _engine

#: What other engines and LMDeploy's older releases call an option.
_RENAMED = {
    "max_model_len": "session_len",
    "max_seq_len": "session_len",
    "max_context_token_num": "max_prefill_token_num",
    "max_num_batched_tokens": "max_prefill_token_num",
    "max_num_seqs": "max_batch_size",
    "gpu_memory_utilization": "cache_max_entry_count",
    "tensor_parallel_size": "tp",
    "tensor_para_size": "tp",
    "n_threads": "num_threads",
    "seed": "random_seed",
}


@dataclass
class EngineConfig:
    """What can be chosen when an engine is loaded. Every default works.

    Values are checked when the object is made and again when an engine is loaded with it.
    """

    #: "auto", "cpu", "cuda" (the first GPU) or "cuda:N". "auto" takes the first GPU that this build
    #: can run the model on, else the CPU.
    device: str = "auto"
    #: "auto", "float16", "bfloat16" or "float32". On a GPU: of weights, activations and KV cache;
    #: "auto" is as the weights, float16 for float32 ones, and "float32" is refused. On the CPU: of
    #: the KV cache, "auto" as the weights; it computes in float32.
    dtype: str = "auto"
    #: Longest history + prompt + output of a sequence, in tokens; None = the model's own maximum.
    #: Lowered to what the KV pool holds when that is less.
    session_len: int | None = None
    #: Most sequences in one step of the batch loop; None = 64 on a CPU, 256 on a GPU.
    max_batch_size: int | None = None
    #: KV pool: a fraction (0, 1] of the memory left after weights and workspace or, above 1, a
    #: whole number of 64-token blocks. None = automatic: 0.8 on a GPU; on a CPU what max_batch_size
    #: sequences of session_len need, but at most half of the free memory and 4 GiB.
    cache_max_entry_count: float | None = None
    #: Most prompt tokens computed in one step; None = 512 on a CPU, 8192 on a GPU.
    max_prefill_token_num: int | None = None
    #: Tensor-parallel degree.
    tp: int = 1
    #: Dynamic NTK factor that overrides the model's RoPE scaling; 0 = as the model says.
    rope_scaling_factor: float = 0.0
    #: logn attention scaling beyond the training length; None = as the model says.
    use_logn_attn: bool | None = None
    #: KV quantisation: 0 none, 8 int8; None = as a workspace's config.ini says, none elsewhere.
    quant_policy: int | None = None
    #: CPU threads; None = the cores this process may run on.
    num_threads: int | None = None
    #: Longest waiting line; one more request is refused with QueueFullError.
    max_queue_size: int = 4096
    #: Sessions kept at most; the longest idle one is dropped for a new one.
    max_sessions: int = 4096
    #: Seconds after which an idle session is dropped.
    session_ttl_s: float = 3600.0
    #: Share full KV blocks between all requests that begin with the same tokens.
    enable_prefix_caching: bool = True
    #: Seed of requests that bring none; None = drawn from the system at load.
    random_seed: int | None = None

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Raises InvalidArgumentError for a value of the wrong type or out of range."""
        if not isinstance(self.device, str):
            raise check.refuse("device", self.device, 'it must be a str such as "auto" or "cuda"')
        check.choice("dtype", self.dtype, ["auto", "float16", "bfloat16", "float32"])
        self._check_optional("session_len", 1)
        self._check_optional("max_batch_size", 1)
        self._check_cache_max_entry_count()
        self._check_optional("max_prefill_token_num", 1)
        check.integer("tp", self.tp, 1)
        if check.number("rope_scaling_factor", self.rope_scaling_factor) < 0:
            raise check.refuse(
                "rope_scaling_factor", self.rope_scaling_factor, "it must be 0 (off) or positive"
            )
        if self.use_logn_attn is not None:
            check.flag("use_logn_attn", self.use_logn_attn)
        if self.quant_policy is not None:
            check.choice("quant_policy", self.quant_policy, [0, 8])
        self._check_optional("num_threads", 1)
        check.integer("max_queue_size", self.max_queue_size, 1)
        check.integer("max_sessions", self.max_sessions, 1)
        if check.number("session_ttl_s", self.session_ttl_s) <= 0:
            raise check.refuse("session_ttl_s", self.session_ttl_s, "it must be above 0 seconds")
        check.flag("enable_prefix_caching", self.enable_prefix_caching)
        if self.random_seed is not None:
            check.integer("random_seed", self.random_seed, 0, check.MAX_UINT64)

    def _check_optional(self, field: str, low: int) -> None:
        value = getattr(self, field)
        if value is not None:
            check.integer(field, value, low, note=", or None for the default")

    def _check_cache_max_entry_count(self) -> None:
        if self.cache_max_entry_count is None:
            return
        value = check.number("cache_max_entry_count", self.cache_max_entry_count)
        if value <= 0 or (value > 1 and not value.is_integer()) or value > check.MAX_INT32:
            raise check.refuse(
                "cache_max_entry_count",
                self.cache_max_entry_count,
                "it must be a fraction of the free memory in (0, 1], or a whole number of blocks "
                "above 1",
            )

    def replace(self, **overrides: Any) -> EngineConfig:
        """A copy with some options changed; an unknown name is refused with the closest one."""
        names = [field.name for field in dataclasses.fields(self)]
        check.known_names("EngineConfig", overrides, names, _RENAMED)
        return dataclasses.replace(self, **overrides)

    def to_native(self) -> _engine.EngineConfig:
        """The C++ struct; there, 0 (or -1 for use_logn_attn and quant_policy) stands for None."""
        from treadle import _engine

        self.validate()
        native = _engine.EngineConfig()
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in ("use_logn_attn", "quant_policy"):
                value = -1 if value is None else int(value)
            setattr(native, field.name, 0 if value is None else value)
        return native
