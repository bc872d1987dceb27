"""Whether transformers with AutoAWQ's layers reads what `treadle lite auto_awq` wrote.

Both programs must give the same log-probabilities.

    python -m bench.quality.awq_peer MODEL [--text TEXT]

needs an environment of its own, since AutoAWQ 0.2.9 is the last one: transformers 4.51.3, autoawq
0.2.9, accelerate, and treadle. No GPU is needed: AutoAWQ's layers dequantise by torch without one.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np
import torch

from treadle import Engine, GenerationConfig

TEXT = "四川的省会在哪? The capital of Japan is Tokyo, and what is 12 + 30?"
TOP = 20
#: Of log-probabilities, both sides in half precision.
TOLERANCE = 0.05


def peer(path: str, ids: list[int]) -> torch.Tensor:
    """Log-probabilities [tokens, vocabulary] by transformers with AutoAWQ's layers."""
    from awq.modules.linear.gemm import WQLinear_GEMM
    from transformers import AutoModelForCausalLM
    from transformers.quantizers.quantizer_awq import AwqQuantizer

    # It asks for a GPU before it looks at the layers, which do without.
    AwqQuantizer.validate_environment = lambda *_, **__: None
    model: Any = AutoModelForCausalLM.from_pretrained(path, torch_dtype=torch.float16).eval()
    layers = sum(isinstance(module, WQLinear_GEMM) for module in model.modules())
    if layers == 0:
        sys.exit(f"{path}: transformers made no 4-bit layer of it")
    print(f"{layers} layers of AutoAWQ")
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([ids])).logits[0].float(), -1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model")
    parser.add_argument("--text", default=TEXT)
    args = parser.parse_args()
    with Engine.from_pretrained(args.model, device="cpu") as engine:
        ids = engine.tokenizer.encode(args.text)
        config = GenerationConfig(max_new_tokens=1, prompt_logprobs=TOP)
        stream = engine.create_instance().stream_infer(
            None, np.array(ids, dtype=np.int32), config, stream_output=False
        )
        ours = next(stream)[0].prompt_logprobs or []
    theirs = peer(args.model, ids)
    pairs = [
        (token.logprob, theirs[i, token.token_id].item())
        for i, position in enumerate(ours)
        for token in position.top
    ]
    worst = max(abs(mine - other) for mine, other in pairs)
    same = sum(p.top[0].token_id == int(theirs[i].argmax()) for i, p in enumerate(ours))
    print(
        f"{len(ours)} tokens, the best one the same {same} times; "
        f"the {TOP} best log-probabilities differ by at most {worst:.4f}"
    )
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
