"""Every model family against transformers on the same weights: log-probabilities of all prompt and
generated tokens, and greedy choices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import reference
from devices import Device
from families import FELT, check, llama, loaded, mistral, qwen2, qwen3, rope
from reference import HfModel


@dataclass(frozen=True)
class Case:
    build: Callable[..., HfModel]
    config: dict[str, Any] = field(default_factory=dict)
    #: Without these the model is another one, and the test must notice.
    matters: tuple[str, ...] = ()
    prompt_len: int = 150
    options: dict[str, Any] = field(default_factory=dict)


WIDE_ROPE = {"head_dim": 32, "max_position_embeddings": 256}
CASES: dict[str, Case] = {
    "llama": Case(llama),
    "llama-one-head-each": Case(llama, {"num_key_value_heads": 6}),
    "llama-one-kv-head": Case(llama, {"num_key_value_heads": 1}),
    "llama-round-sizes": Case(
        llama,
        {
            "vocab_size": 512,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
        },
    ),
    # Logits of the prompt's tokens do not fit the buffer at once.
    "llama-large-vocab": Case(llama, {"vocab_size": 40_009, "hidden_size": 24}, prompt_len=260),
    "llama-attention-bias": Case(llama, {"attention_bias": True}, ("attention_bias",)),
    "llama-mlp-bias": Case(llama, {"mlp_bias": True}, ("mlp_bias",)),
    "llama-both-biases": Case(llama, {"attention_bias": True, "mlp_bias": True}),
    "llama-tied": Case(llama, {"tie_word_embeddings": True}),
    "llama-head-dim": Case(llama, {"head_dim": 20}),
    "llama-large-head-dim": Case(llama, {"head_dim": 256, "num_hidden_layers": 1}),
    "llama-theta": Case(llama, rope("default"), ("rope_parameters",)),
    "llama-linear": Case(llama, rope("linear", factor=4.0), ("rope_parameters",)),
    "llama-llama3": Case(
        llama,
        WIDE_ROPE
        | rope(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=64,
        ),
        ("rope_parameters",),
    ),
    "llama-yarn": Case(
        llama,
        WIDE_ROPE | rope("yarn", factor=4.0, original_max_position_embeddings=64),
        ("rope_parameters",),
    ),
    "llama-yarn-options": Case(
        llama,
        WIDE_ROPE
        | rope(
            "yarn",
            factor=4.0,
            original_max_position_embeddings=64,
            beta_fast=20.0,
            beta_slow=2.0,
            truncate=False,
            attention_factor=1.3,
        ),
        ("rope_parameters",),
    ),
    "llama-yarn-mscale": Case(
        llama,
        WIDE_ROPE
        | rope(
            "yarn",
            factor=4.0,
            original_max_position_embeddings=64,
            mscale=1.5,
            mscale_all_dim=0.7,
        ),
        ("rope_parameters",),
    ),
    "mistral": Case(mistral, {"sliding_window": None}),
    "mistral-window": Case(mistral, {"sliding_window": 40}, ("sliding_window",)),
    "mistral-window-of-a-block": Case(mistral, {"sliding_window": 64}, ("sliding_window",)),
    "mistral-window-of-one": Case(mistral, {"sliding_window": 1}, ("sliding_window",)),
    "mistral-head-dim": Case(mistral, {"sliding_window": 100, "head_dim": 16}),
    "qwen2": Case(qwen2),
    "qwen2-tied": Case(qwen2, {"tie_word_embeddings": True}),
    "qwen2-window": Case(
        qwen2,
        {"use_sliding_window": True, "sliding_window": 33, "max_window_layers": 1},
        ("use_sliding_window",),
    ),
    "qwen2-window-of-other-layers": Case(
        qwen2,
        {
            "use_sliding_window": True,
            "sliding_window": 33,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        ("layer_types",),
    ),
    "qwen2-yarn": Case(
        qwen2,
        WIDE_ROPE
        | {"hidden_size": 192}
        | rope("yarn", factor=4.0, original_max_position_embeddings=64),
        ("rope_parameters",),
    ),
    "qwen3": Case(qwen3, {"head_dim": 24}),
    "qwen3-bias": Case(qwen3, {"head_dim": 24, "attention_bias": True}, ("attention_bias",)),
    "qwen3-window": Case(
        qwen3,
        {
            "head_dim": 16,
            "use_sliding_window": True,
            "sliding_window": 50,
            "max_window_layers": 2,
            "tie_word_embeddings": True,
        },
        ("use_sliding_window",),
    ),
}


def assert_felt(device: Device, model: HfModel, case: Case) -> None:
    """The reference itself gives another result without the settings that the case is about."""
    plain = case.build(device, **{k: v for k, v in case.config.items() if k not in case.matters})
    plain.load_state_dict(model.state_dict(), strict=False)
    ids = reference.random_ids(case.prompt_len, model.config.vocab_size)
    difference = reference.logprobs(model, ids) - reference.logprobs(plain, ids)
    assert difference.abs().max() > FELT


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_equals_transformers(case: Case, device: Device, tmp_path: Path) -> None:
    model = case.build(device, **case.config)
    if case.matters:
        assert_felt(device, model, case)
    reference.save(model, tmp_path)
    with loaded(device, tmp_path, max_prefill_token_num=128) as engine:
        check(engine, model, case.prompt_len)
        check(engine, model, 1)


# Other ways to the same numbers.


def test_chunks_do_not_matter(device: Device, tmp_path: Path) -> None:
    model = mistral(device, sliding_window=40)
    reference.save(model, tmp_path)
    for chunk in (1, 7, 63, 100):
        with loaded(device, tmp_path, max_prefill_token_num=chunk) as engine:
            check(engine, model, 150, new_tokens=8)


def test_generate_gives_the_same_tokens(device: Device, tmp_path: Path) -> None:
    """Greedy generation from end to end, until the reference's two best tokens are almost equal."""
    model = qwen3(device) if device.exact else reference.stand_out(qwen3(device))
    reference.save(model, tmp_path)
    prompt = reference.random_ids(70, model.config.vocab_size)
    result = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),  # no id of it is padding
        max_new_tokens=64,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    best = torch.cat(result.logits).topk(2).values
    ties = (best[:, 0] - best[:, 1] < device.near_tie).nonzero()
    clear = int(ties[0]) if len(ties) else 64
    assert clear > 8
    with loaded(device, tmp_path) as engine:
        output = reference.run(engine, prompt, max_new_tokens=64, ignore_eos=True)
    expected = result.sequences[0, len(prompt) :].tolist()
    assert output.token_ids.tolist()[:clear] == expected[:clear]
