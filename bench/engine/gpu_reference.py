"""What the GPU workloads are compared with: peers on one NVIDIA H200, and our targets.

Peers were measured on 2026-11-20 with the lengths and the method of gpu_workloads.py: vLLM 0.24.0
and LMDeploy TurboMind 0.18.0 at their defaults, float16; driver 580.159.04, CUDA 13.0, power limit
700 W.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reference:
    """Peers' figures and the bound that ours should keep; None where there is none."""

    vllm: float | None = None
    turbomind: float | None = None
    target: float | None = None
    #: Otherwise lower is better.
    higher_is_better: bool = False

    def met(self, value: float) -> bool | None:
        if self.target is None:
            return None
        return value >= self.target if self.higher_is_better else value <= self.target


#: (model, case) -> reference. Steps and times to first token in ms, requests in output tokens per
#: second, starts in s.
REFERENCES: dict[tuple[str, str], Reference] = {
    ("llama-3-8b", "step, batch 1"): Reference(4.870, 5.116, 4.2),
    ("llama-3-8b", "step, batch 8"): Reference(5.091, 5.302, 4.4),
    ("llama-3-8b", "step, batch 32"): Reference(5.460, 5.579, 4.9),
    ("llama-3-8b", "step, batch 64"): Reference(5.963, 5.722, 5.2),
    ("llama-3-8b", "step, batch 128"): Reference(7.385, 7.874, 6.6),
    ("llama-3-8b", "step, batch 256"): Reference(11.497, 10.702, 9.6),
    ("llama-3-8b", "step at 8192, batch 1"): Reference(5.135, 5.553, 4.5),
    ("llama-3-8b", "step at 8192, batch 32"): Reference(12.98, 13.12, 11.0),
    ("llama-3-8b", "first token, 512"): Reference(15.0, 18.7, 13.0),
    ("llama-3-8b", "first token, 2048"): Reference(53.0, 58.6, 46.0),
    ("llama-3-8b", "first token, 8192"): Reference(223.9, 257.3, 200.0),
    ("llama-3-8b", "first token, 16384"): Reference(508.7, 615.8, 450.0),
    ("llama-3-8b", "first token, 16 x 1024"): Reference(390.8, 405.3, 345.0),
    ("llama-3-8b", "512 requests"): Reference(9301, 9562, 10800, higher_is_better=True),
    ("llama-3-8b", "512 long requests, int8 / 16 bits"): Reference(
        target=1.2, higher_is_better=True
    ),
    # Of the peers without `import`, which takes vLLM 12 s more (with a warm compile cache) and
    # TurboMind 4 s.
    ("llama-3-8b", "start to first token"): Reference(24.0, 8.8, 5.0),
    ("llama-3-8b", "load"): Reference(target=10.0),
    ("llama-3-8b", "mixed load, p99 / median"): Reference(target=3.0),
    # Peers with AWQ weights (vLLM's kernel is Machete).
    ("llama-3-8b-int4", "step, batch 1"): Reference(3.937, 7.254, 2.0),
    ("llama-3-8b-int4", "step, batch 8"): Reference(4.059, 7.548, 2.2),
    ("llama-3-8b-int4", "step, batch 32"): Reference(4.666, 8.504, 2.9),
    ("llama-3-8b-int4", "step, batch 64"): Reference(6.140, 8.663, 4.1),
    ("llama-3-8b-int4", "step, batch 128"): Reference(7.469, 9.474, 6.2),
    ("llama-3-8b-int4", "step, batch 256"): Reference(11.605, 12.462, 9.6),
    ("llama-3-8b-int4", "step at 8192, batch 1"): Reference(4.244, 7.939),
    ("llama-3-8b-int4", "step at 8192, batch 32"): Reference(12.06, 16.07),
    ("llama-3-8b-int4", "first token, 512"): Reference(16.3, 22.5),
    ("llama-3-8b-int4", "first token, 2048"): Reference(53.8, 58.0),
    ("llama-3-8b-int4", "first token, 8192"): Reference(236.4, 251.4),
    ("llama-3-8b-int4", "first token, 16384"): Reference(534.2, 597.8),
    ("llama-3-8b-int4", "first token, 16 x 1024"): Reference(419.9, 403.2),
    ("llama-3-8b-int4", "512 requests"): Reference(8815, 9103, 11000, higher_is_better=True),
    ("llama-2-7b", "step, batch 1"): Reference(turbomind=4.644, target=3.9),
    ("llama-2-7b", "step, batch 32"): Reference(turbomind=5.747, target=5.0),
    ("llama-2-7b", "step, batch 128"): Reference(turbomind=9.174, target=7.9),
    ("llama-2-7b", "step, batch 256"): Reference(turbomind=15.330, target=12.5),
    ("llama-2-7b", "first token, 2048"): Reference(turbomind=53.9),
    ("llama-2-7b", "first token, 8192"): Reference(turbomind=240.6),
    ("llama-2-7b", "first token, 16 x 1024"): Reference(turbomind=380.0),
    ("llama-2-7b", "512 requests"): Reference(turbomind=5867, higher_is_better=True),
    ("llama-2-7b-int4", "step, batch 1"): Reference(turbomind=6.938),
    ("llama-2-7b-int4", "step, batch 32"): Reference(turbomind=8.975),
    ("llama-2-7b-int4", "step, batch 128"): Reference(turbomind=11.840),
    ("llama-2-7b-int4", "step, batch 256"): Reference(turbomind=17.666),
    ("llama-2-7b-int4", "first token, 2048"): Reference(turbomind=56.2),
    ("llama-2-7b-int4", "first token, 8192"): Reference(turbomind=241.5),
    ("llama-2-7b-int4", "first token, 16 x 1024"): Reference(turbomind=379.6),
    ("llama-2-7b-int4", "512 requests"): Reference(turbomind=5390, higher_is_better=True),
}
