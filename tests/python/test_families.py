"""Every model family against transformers on the same weights: log-probabilities of all prompt and
generated tokens, and greedy choices."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import devices
import reference
from devices import Device
from reference import HfModel
from treadle import Engine

#: What a feature must change at least, for its test to mean something.
FELT = 0.05

#: No size is a multiple of a vector register where the format allows another one.
SIZES: dict[str, Any] = {
    "vocab_size": 331,
    "hidden_size": 72,
    "intermediate_size": 148,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ROPE = {"rope_type": "default", "rope_theta": 500.0}


@contextmanager
def loaded(device: Device, directory: Path, **options: Any) -> Iterator[Engine]:
    options = {"dtype": device.dtype, "session_len": 512, "max_batch_size": 2} | options
    with device.load(directory, num_threads=2, **options) as engine:
        yield engine


def llama(device: Device, **overrides: Any) -> HfModel:
    return reference.build(LlamaForCausalLM, LlamaConfig(**device.fit(SIZES | overrides)))


def split_llama(device: Device, **overrides: Any) -> HfModel:
    """Its heads divide the hidden size: for configuration files that do not name head_dim."""
    config = device.fit(SIZES | overrides, split=True)
    return reference.build(LlamaForCausalLM, LlamaConfig(**config))


def mistral(device: Device, **overrides: Any) -> HfModel:
    return reference.build(MistralForCausalLM, MistralConfig(**device.fit(SIZES | overrides)))


def qwen2(device: Device, **overrides: Any) -> HfModel:
    return reference.build(Qwen2ForCausalLM, Qwen2Config(**device.fit(SIZES | overrides)))


def qwen3(device: Device, **overrides: Any) -> HfModel:
    return reference.build(Qwen3ForCausalLM, Qwen3Config(**device.fit(SIZES | overrides)))


@dataclass(frozen=True)
class Case:
    build: Callable[..., HfModel]
    config: dict[str, Any] = field(default_factory=dict)
    #: Without these the model is another one, and the test must notice.
    matters: tuple[str, ...] = ()
    prompt_len: int = 150
    options: dict[str, Any] = field(default_factory=dict)


def rope(rope_type: str, **settings: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 500.0} | settings}


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


def check(engine: Engine, model: HfModel, prompt_len: int = 150, **options: Any) -> None:
    """Long prompts cross KV blocks and, with 128 tokens a step, chunks."""
    prompt = reference.random_ids(prompt_len, model.config.vocab_size)
    difference = reference.compare(engine, model, prompt, **options)
    device = devices.of(engine)
    assert difference.largest < device.tolerance, difference
    assert difference.regret < device.near_tie, difference


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


@pytest.mark.parametrize("prompt_len", [30, 60, 64, 65, 150])
def test_dynamic_ntk_grows_with_the_text(prompt_len: int, device: Device, tmp_path: Path) -> None:
    """The base fits the prompt for all its tokens and afterwards grows with every token, as in
    generate(). The first prompt reaches the trained length while it generates."""
    model = llama(device, max_position_embeddings=64, **rope("dynamic", factor=3.0))
    reference.save(model, tmp_path)
    with loaded(device, tmp_path) as engine:
        check(engine, model, prompt_len, stepwise=True)


def test_dynamic_ntk_does_not_depend_on_chunks(device: Device, tmp_path: Path) -> None:
    model = llama(device, max_position_embeddings=64, **rope("dynamic", factor=3.0))
    reference.save(model, tmp_path)
    with loaded(device, tmp_path, max_prefill_token_num=7) as engine:
        for prompt_len in (50, 200):
            check(engine, model, prompt_len, stepwise=True)


# Weights and configuration files as they are found.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("build", [llama, qwen2, qwen3], ids=["llama", "qwen2", "qwen3"])
def test_16_bit_weights(
    build: Callable[..., HfModel], dtype: torch.dtype, device: Device, tmp_path: Path
) -> None:
    """Whatever they are computed in, equal to the rounded weights in float32."""
    model = reference.save_rounded(build(device), dtype, tmp_path)
    with loaded(device, tmp_path) as engine:
        stored = str(dtype).removeprefix("torch.")
        assert engine.info.weight_dtype == (stored if device.exact else device.dtype)
        check(engine, model)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float16, 0.02), (torch.bfloat16, 0.2)], ids=["fp16", "bf16"]
)
def test_16_bits_are_close(
    dtype: torch.dtype, tolerance: float, device: Device, tmp_path: Path
) -> None:
    model = reference.save_rounded(llama(device), dtype, tmp_path)
    with loaded(device, tmp_path, dtype="auto") as engine:
        assert engine.info.kv_dtype == engine.info.weight_dtype
        prompt = reference.random_ids(150, model.config.vocab_size)
        difference = reference.compare(engine, model, prompt)
        # A GPU keeps activations in 16 bits, too.
        assert devices.CPU.tolerance < difference.largest < tolerance * (1 if device.exact else 2)


def test_weights_of_several_types(device: Device, tmp_path: Path) -> None:
    model = llama(device, attention_bias=True)
    reference.save(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    dtypes = [torch.float16, torch.bfloat16, torch.float32]
    for i, name in enumerate(sorted(tensors)):
        tensors[name] = tensors[name].to(dtypes[i % 3])
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    model.load_state_dict(tensors)
    with loaded(device, tmp_path) as engine:
        check(engine, model)


def test_shards(device: Device, tmp_path: Path) -> None:
    model = qwen3(device)
    reference.save(model, tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert (tmp_path / "model.safetensors.index.json").exists()
    with loaded(device, tmp_path) as engine:
        check(engine, model)


def rewrite_config(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text("utf-8"))
    change(config)
    path.write_text(json.dumps(config), "utf-8")


@pytest.mark.parametrize("kind", ["type", "rope_type"])
def test_older_configuration_files(kind: str, device: Device, tmp_path: Path) -> None:
    """As transformers 4 wrote them: rope_theta, rope_scaling, torch_dtype, nothing redundant."""
    model = split_llama(device, **rope("linear", factor=4.0))
    reference.save(model, tmp_path)

    def change(config: dict[str, Any]) -> None:
        del config["rope_parameters"], config["head_dim"]
        config["torch_dtype"] = config.pop("dtype")
        config["rope_theta"] = 500.0
        config["rope_scaling"] = {kind: "linear", "factor": 4.0}

    rewrite_config(tmp_path, change)
    with loaded(device, tmp_path) as engine:
        check(engine, model)


def test_older_qwen2_window(device: Device, tmp_path: Path) -> None:
    """Before layer_types there was max_window_layers alone."""
    model = qwen2(device, use_sliding_window=True, sliding_window=33, max_window_layers=1)
    reference.save(model, tmp_path)
    rewrite_config(tmp_path, lambda config: config.pop("layer_types"))
    with loaded(device, tmp_path) as engine:
        check(engine, model)


# InternLM, whose code is not part of transformers: its weights under their own names, and the same
# weights as a llama for the reference.


def as_internlm(directory: Path, **fields: Any) -> None:
    """https://huggingface.co/internlm/internlm-chat-7b, modeling_internlm.py: a llama with biases
    on q, k, v and o; ``rotary`` names the embedding."""

    def change(config: dict[str, Any]) -> None:
        for name in ("rope_parameters", "attention_bias", "mlp_bias", "head_dim"):
            config.pop(name, None)
        config.update(architectures=["InternLMForCausalLM"], model_type="internlm", **fields)

    rewrite_config(directory, change)


def test_internlm(device: Device, tmp_path: Path) -> None:
    model = split_llama(device, attention_bias=True, num_key_value_heads=6)
    reference.save(model, tmp_path)
    as_internlm(tmp_path, bias=True, rotary={"type": "origin", "base": 10000})
    with loaded(device, tmp_path) as engine:
        assert engine.info.family == "internlm"
        check(engine, model)


def test_internlm_without_bias(device: Device, tmp_path: Path) -> None:
    model = split_llama(device, num_key_value_heads=6)
    reference.save(model, tmp_path)
    as_internlm(tmp_path, bias=False)
    with loaded(device, tmp_path) as engine:
        check(engine, model)


@pytest.mark.parametrize("factor", [1.0, 2.5])
def test_internlm_rotary_is_dynamic(factor: float, device: Device, tmp_path: Path) -> None:
    """InternLMDynamicNTKScalingRotaryEmbedding has the formula of transformers' dynamic type."""
    model = split_llama(
        device,
        attention_bias=True,
        num_key_value_heads=6,
        max_position_embeddings=64,
        **rope("dynamic", factor=factor),
    )
    reference.save(model, tmp_path)
    rotary = {"type": "dynamic", "base": 500, "scaling_factor": factor}
    as_internlm(tmp_path, bias=True, rotary=rotary)
    with loaded(device, tmp_path) as engine:
        check(engine, model, 150, stepwise=True)


INTERNLM2_NAMES = {
    "model.embed_tokens": "model.tok_embeddings",
    "lm_head": "output",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}


def as_internlm2(directory: Path, model: HfModel, **fields: Any) -> None:
    """https://huggingface.co/internlm/internlm2-7b, modeling_internlm2.py: names of its own, and
    wqkv read as "(h gs d)" with gs = the group's queries, then k, then v."""
    config = model.config
    group = config.num_attention_heads // config.num_key_value_heads
    tensors: dict[str, torch.Tensor] = {}
    weights = load_file(directory / "model.safetensors")
    for name, tensor in weights.items():
        layer, found, part = name.partition("self_attn.q_proj.")
        if found:
            heads = [
                weights[f"{layer}self_attn.{letter}_proj.{part}"].unflatten(
                    0, (config.num_key_value_heads, count, config.head_dim)
                )
                for letter, count in (("q", group), ("k", 1), ("v", 1))
            ]
            tensors[f"{layer}attention.wqkv.{part}"] = torch.cat(heads, 1).flatten(0, 2)
        elif "k_proj" not in name and "v_proj" not in name:
            for old, new in INTERNLM2_NAMES.items():
                name = name.replace(old, new)
            tensors[name] = tensor
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})

    def change(config: dict[str, Any]) -> None:
        for name in ("attention_bias", "mlp_bias", "head_dim"):
            config.pop(name, None)
        config.update(architectures=["InternLM2ForCausalLM"], model_type="internlm2", **fields)

    rewrite_config(directory, change)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_internlm2(kv_heads: int, bias: bool, device: Device, tmp_path: Path) -> None:
    model = split_llama(device, num_key_value_heads=kv_heads, attention_bias=bias)
    reference.save(model, tmp_path)
    as_internlm2(tmp_path, model, bias=bias)
    with loaded(device, tmp_path) as engine:
        assert engine.info.family == "internlm2"
        check(engine, model)


def test_internlm2_in_bfloat16_with_dynamic_rope(device: Device, tmp_path: Path) -> None:
    model = split_llama(device, max_position_embeddings=64, **rope("dynamic", factor=2.0))
    reference.save_rounded(model, torch.bfloat16, tmp_path)
    as_internlm2(tmp_path, model, bias=False)

    def change(config: dict[str, Any]) -> None:
        del config["rope_parameters"]
        config.update(rope_theta=500.0, rope_scaling={"type": "dynamic", "factor": 2.0})

    rewrite_config(tmp_path, change)
    with loaded(device, tmp_path) as engine:
        check(engine, model, 100, stepwise=True)


def as_internlm3(directory: Path, **fields: Any) -> None:
    """https://huggingface.co/internlm/internlm3-8b-instruct, modeling_internlm3.py: a llama with
    ``qkv_bias`` for q, k and v, and ``bias`` for o and the three of the MLP."""

    def change(config: dict[str, Any]) -> None:
        del config["attention_bias"], config["mlp_bias"]
        config.update(architectures=["InternLM3ForCausalLM"], model_type="internlm3", **fields)

    rewrite_config(directory, change)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("qkv_bias", [False, True])
def test_internlm3(qkv_bias: bool, bias: bool, device: Device, tmp_path: Path) -> None:
    model = llama(device, attention_bias=True, mlp_bias=True, head_dim=16)
    reference.save(model, tmp_path)
    absent = [] if qkv_bias else ["q_proj.bias", "k_proj.bias", "v_proj.bias"]
    absent += [] if bias else ["o_proj.bias", "gate_proj.bias", "up_proj.bias", "down_proj.bias"]
    tensors = load_file(tmp_path / "model.safetensors")
    for name in list(tensors):
        if name.endswith(tuple(absent)):
            del tensors[name]
            model.get_parameter(name).data.zero_()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    as_internlm3(tmp_path, qkv_bias=qkv_bias, bias=bias)
    with loaded(device, tmp_path) as engine:
        assert engine.info.family == "internlm3"
        check(engine, model)


# Options of the engine that change what a model computes.


def test_rope_scaling_factor_makes_any_model_dynamic(device: Device, tmp_path: Path) -> None:
    model = llama(device, max_position_embeddings=64, **rope("default"))
    reference.save(model, tmp_path)
    dynamic = llama(device, max_position_embeddings=64, **rope("dynamic", factor=2.0))
    with loaded(device, tmp_path, rope_scaling_factor=2.0) as engine:
        for prompt_len in (40, 150):
            check(engine, dynamic, prompt_len, stepwise=True)


def scale_queries_by_logn(model: HfModel, trained_len: int) -> HfModel:
    """Queries at position p times max(1, log(p + 1) / log(trained_len)), as Qwen and TurboMind have
    it. Rotation keeps lengths, so it may be done before it."""

    def scale(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        position = torch.arange(1, output.shape[1] + 1, dtype=torch.float64)
        factor = (position.log() / torch.tensor(float(trained_len)).log()).clamp(min=1.0)
        return output * factor[None, :, None].to(output.dtype)

    for layer in model.model.layers:
        layer.self_attn.q_proj.register_forward_hook(scale)
    return model


def test_logn_attention(device: Device, tmp_path: Path) -> None:
    model = llama(device, max_position_embeddings=20)
    reference.save(model, tmp_path)
    ids = reference.random_ids(150, model.config.vocab_size)
    plain = reference.logprobs(model, ids)
    with loaded(device, tmp_path, use_logn_attn=False) as engine:
        check(engine, model)
    scale_queries_by_logn(model, 20)
    assert (reference.logprobs(model, ids) - plain).abs().max() > FELT
    with loaded(device, tmp_path, use_logn_attn=True, max_prefill_token_num=50) as engine:
        check(engine, model)


def test_logn_attention_with_the_length_of_the_model(device: Device, tmp_path: Path) -> None:
    model = llama(device)
    reference.save(model, tmp_path)
    rewrite_config(tmp_path, lambda config: config.update(use_logn_attn=True, seq_length=30))
    with loaded(device, tmp_path) as engine:
        check(engine, scale_queries_by_logn(model, 30))


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
