"""What transformers computes with the same weights, and how the engine's results are compared.

Models are small and random, but not as transformers initialises them: with its tiny weights and
zero biases every distribution is flat and most mistakes stay below any tolerance.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from devices import Device
from treadle import Engine
from treadle.outputs import PositionLogprobs, SequenceOutput

# The model classes of transformers have no annotations that hold from release to release.
HfModel = Any

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
# Its threads spin while they wait, which on a busy machine costs more than they bring.
torch.set_num_threads(1)


def randomize(model: HfModel, seed: int) -> HfModel:
    """Weights of the size that keeps activations near 1, norms around 1, biases that matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if name.endswith("bias"):
                weight.copy_(0.5 * noise)
            elif "norm" in name:
                weight.copy_(1.0 + 0.3 * noise)
            elif "embed" in name:
                weight.copy_(noise)
            else:
                # Queries and keys a little larger, so that attention has preferences.
                gain = 1.5 if "q_proj" in name or "k_proj" in name or "lm_head" in name else 1.0
                weight.copy_(gain * noise / weight.shape[-1] ** 0.5)
        if model.config.tie_word_embeddings:
            model.get_input_embeddings().weight.mul_(2.0 / model.config.hidden_size**0.5)
    return model.eval()


def build(model_class: Callable[[Any], HfModel], config: Any, seed: int = 0) -> HfModel:
    """A random float32 model that attends eagerly and can be compared to the last digits."""
    config._attn_implementation = "eager"
    return randomize(model_class(config), seed).float()


def logits(model: HfModel, ids: Sequence[int]) -> torch.Tensor:
    """Float64 [len(ids), vocab]: after each token, logits of the next one."""
    with torch.inference_mode():
        # A copy: dynamic RoPE scaling remembers the longest text the model has seen.
        output = copy.deepcopy(model)(torch.tensor([list(ids)], device=model.device))
    return output.logits[0].double().cpu()


def logprobs(model: HfModel, ids: Sequence[int]) -> torch.Tensor:
    """The same as log-probabilities."""
    return torch.log_softmax(logits(model, ids), dim=-1)


def prompt_logprob(model: HfModel, ids: Sequence[int]) -> float:
    """The log-probability of ``ids`` after the first one."""
    rows = logprobs(model, ids)[:-1]
    return float(rows[torch.arange(len(ids) - 1), list(ids[1:])].sum())


def stepwise_logprobs(model: HfModel, prompt: Sequence[int], output: Sequence[int]) -> torch.Tensor:
    """As logprobs of the last prompt token and of ``output`` but its last token, each token fed by
    itself with a KV cache, as generate() does: float64 [len(output), vocab]."""
    model = copy.deepcopy(model)
    rows = []
    with torch.inference_mode():
        step = model(torch.tensor([list(prompt)]), use_cache=True)
        for token in output:
            rows.append(torch.log_softmax(step.logits[0, -1].double(), dim=-1))
            step = model(
                torch.tensor([[int(token)]]), past_key_values=step.past_key_values, use_cache=True
            )
    return torch.stack(rows)


def run(engine: Engine, prompt: Sequence[int], **options: Any) -> SequenceOutput:
    """The one final output of a request outside any session."""
    (outputs,) = engine.create_instance().stream_infer(
        None, list(prompt), stream_output=False, **options
    )
    assert outputs[0].error is None, outputs[0].error
    return outputs[0]


def chosen(entries: Sequence[PositionLogprobs] | None) -> npt.NDArray[np.float64]:
    """Log-probabilities of the tokens that stand there."""
    assert entries is not None
    return np.array([entry.chosen.logprob for entry in entries])


@dataclass
class Difference:
    """Largest absolute differences from the reference, in log-probability."""

    prompt: float = 0.0
    output: float = 0.0
    #: By how much the reference prefers another token than the one the engine took.
    regret: float = 0.0

    @property
    def largest(self) -> float:
        return max(self.prompt, self.output)


def compare(
    engine: Engine,
    model: HfModel,
    prompt: Sequence[int],
    new_tokens: int = 64,
    *,
    stepwise: bool = False,
) -> Difference:
    """Greedy generation against the reference, teacher-forced on the engine's own tokens: after a
    near tie both still see the same text."""
    output = run(
        engine,
        prompt,
        max_new_tokens=new_tokens,
        ignore_eos=True,
        logprobs=0,
        prompt_logprobs=0,
        do_sample=False,
    )
    ids = output.token_ids.tolist()
    assert len(ids) == new_tokens
    reference = logprobs(model, [*prompt, *ids[:-1]])
    after_prompt = reference[len(prompt) - 1 :]
    if stepwise:
        after_prompt = stepwise_logprobs(model, prompt, ids)
        reference = logprobs(model, prompt)
    rows = torch.arange(len(prompt) - 1)
    expected_prompt = reference[rows, list(prompt[1:])].numpy()
    expected = after_prompt[torch.arange(new_tokens), ids].numpy()
    best = after_prompt.max(dim=-1).values.numpy()
    assert output.prompt_logprobs is None or len(output.prompt_logprobs) == len(prompt) - 1
    return Difference(
        prompt=_largest(chosen(output.prompt_logprobs) - expected_prompt) if len(rows) else 0.0,
        output=_largest(chosen(output.logprobs) - expected),
        regret=float((best - expected).max()),
    )


def _largest(difference: npt.NDArray[np.float64]) -> float:
    return float(np.abs(difference).max())


def random_ids(count: int, vocab_size: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, vocab_size, count).tolist()


def save(model: HfModel, directory: Path, **options: Any) -> Path:
    model.save_pretrained(directory, **options)
    return directory


def save_rounded(model: HfModel, dtype: torch.dtype, directory: Path) -> HfModel:
    """Saves the weights in 16 bits; the model keeps the rounded ones in float32. Converting all of
    the model would round the frequencies of its rotary embedding, too."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.to(dtype))
    copy.deepcopy(model).to(dtype).save_pretrained(directory)
    return model


def stand_out(model: HfModel) -> HfModel:
    """Makes the next token follow from the newest one with a margin that half precision keeps.
    What comes before moves the log-probabilities only."""
    embedding = model.get_input_embeddings().weight
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(1.5)
            layer.mlp.down_proj.weight.mul_(0.5)
        model.lm_head.weight.copy_(7.0 / embedding.shape[1] * embedding.roll(1, 0))
    return model


def save_small_llama(
    directory: Path, device: Device, dtype: torch.dtype = torch.float16, **overrides: Any
) -> Path:
    """A llama whose steps take no time: for tests of what is around the model. On a device whose
    results depend on the batch, no greedy choice of it is close."""
    sizes = {
        "vocab_size": 200,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if not device.exact:
        sizes["hidden_size"] = 192
    model = build(LlamaForCausalLM, LlamaConfig(**device.fit(sizes | overrides)))
    save_rounded(model if device.exact else stand_out(model), dtype, directory)
    return directory
