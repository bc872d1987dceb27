"""treadle lite: small random models and the demo against whole models of transformers, and
AutoAWQ's layout written out once more."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
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

import reference
from reference import HfModel
from test_families import as_internlm2, as_internlm3
from tokenizer_models import LLAMA3_SPLIT, save_byte_level
from treadle import Engine
from treadle.cli import main
from treadle.errors import (
    ConfigError,
    InvalidArgumentError,
    InvalidModelError,
    NotFoundError,
    OutOfMemoryError,
    UnsupportedError,
)
from treadle.lite import auto_awq, calibrate, gptq, kv_qparams
from treadle.lite.awq_search import LayerSearch, output_error, search_clip, search_scales
from treadle.lite.checkpoint import Checkpoint
from treadle.lite.decoder_layer import DecoderLayer
from treadle.lite.families import ATTN_NORM, LINEARS, MLP_NORM
from treadle.lite.int4 import awq_gemm, group_ranges, quantize, rounded
from treadle.lite.samples import load_samples
from treadle.lite.statistics import LayerStatistics
from treadle.lite.work_dir import WorkDir
from treadle.tokenizer import Tokenizer

Tensors = dict[str, torch.Tensor]

SIZES: dict[str, Any] = {
    "vocab_size": 608,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
CALIBRATION: dict[str, Any] = {"samples": 8, "seqlen": 48}


def llama(**overrides: Any) -> HfModel:
    return reference.build(LlamaForCausalLM, LlamaConfig(**(SIZES | overrides)))


def mistral() -> HfModel:
    return reference.build(MistralForCausalLM, MistralConfig(**SIZES, sliding_window=16))


def qwen2() -> HfModel:
    """The last layers have a sliding window, the first one has not."""
    config = Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=16, max_window_layers=1)
    return reference.build(Qwen2ForCausalLM, config)


def qwen3() -> HfModel:
    return reference.build(Qwen3ForCausalLM, Qwen3Config(**SIZES, tie_word_embeddings=True))


FAMILIES: dict[str, Callable[[], HfModel]] = {
    "llama": llama,
    "llama-biases-one-head-each": lambda: llama(
        attention_bias=True, mlp_bias=True, num_key_value_heads=4
    ),
    "mistral": mistral,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "internlm2": lambda: llama(attention_bias=True),
    "internlm3": lambda: llama(attention_bias=True),
}


def save(model: HfModel, directory: Path, name: str = "") -> Path:
    reference.save(model, directory)
    save_byte_level(directory, LLAMA3_SPLIT, adds_bos=True)
    if name == "internlm2":
        as_internlm2(directory, model, bias=True)
    elif name == "internlm3":
        as_internlm3(directory, qkv_bias=True, bias=False)
        drop_biases(model, directory)
    return directory


def drop_biases(model: HfModel, directory: Path) -> None:
    """Of o_proj, which internlm3 has only with ``bias``."""
    tensors = load_file(directory / "model.safetensors")
    for name in [name for name in tensors if name.endswith("o_proj.bias")]:
        del tensors[name]
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.bias.zero_()


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "text.txt"
    words = np.random.default_rng(0).choice(
        ["the", "quick", "brown", "fox", "杭州", "is", "37", "+", "48", "=", "\n", "jumps"], 1200
    )
    path.write_text(" ".join(words), encoding="utf-8")
    return path


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    return save(llama(), tmp_path / "model")


# AutoAWQ's layout, as AutoAWQ's own packing describes it: column 8 n + ORDER[i] in bits 4 i to
# 4 i + 3 of word n.
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def unpack(words: torch.Tensor) -> torch.Tensor:
    out = torch.empty(words.shape[0], 8 * words.shape[1])
    for i, column in enumerate(ORDER):
        out[:, column::8] = (words.long() >> 4 * i & 15).float()
    return out


def restore(tensors: Tensors, name: str, group: int) -> torch.Tensor:
    """[out, in], after checks of types and shapes."""
    q, zeros, scales = (tensors.pop(f"{name}.{kind}") for kind in ("qweight", "qzeros", "scales"))
    size, out = q.shape[0], q.shape[1] * 8
    assert q.dtype == zeros.dtype == torch.int32
    assert scales.dtype == torch.float16
    assert zeros.shape == (size // group, out // 8)
    assert scales.shape == (size // group, out)
    each = torch.arange(size) // group
    return ((unpack(q) - unpack(zeros)[each]) * scales.float()[each]).T


def restored(directory: Path) -> Tensors:
    """The float32 weights that a quantised directory stands for."""
    config = json.loads((directory / "config.json").read_text("utf-8"))
    quantization = config["quantization_config"]
    head = "output" if config["model_type"] == "internlm2" else "lm_head"
    assert quantization == {
        "quant_method": "awq", "bits": 4, "group_size": quantization["group_size"],
        "zero_point": True, "version": "gemm", "modules_to_not_convert": [head],
    }  # fmt: skip
    tensors = load_file(directory / "model.safetensors")
    names = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    linears = 5 if config["model_type"] == "internlm2" else 7
    assert len(names) == linears * config["num_hidden_layers"]
    weights = {
        f"{name}.weight": restore(tensors, name, quantization["group_size"]) for name in names
    }
    return weights | {name: tensor.float() for name, tensor in tensors.items()}


INTERNLM2_PARTS = {
    "model.tok_embeddings": "model.embed_tokens",
    "output": "lm_head",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def as_llama_tensors(tensors: Tensors, config: Any) -> Tensors:
    """internlm2's names and rows as llama's."""
    out: Tensors = {}
    group = config.num_attention_heads // config.num_key_value_heads
    for name, tensor in tensors.items():
        if ".wqkv." in name:
            heads = tensor.unflatten(0, (config.num_key_value_heads, group + 2, config.head_dim))
            parts = {"q": heads[:, :group], "k": heads[:, group], "v": heads[:, group + 1]}
            for letter, rows in parts.items():
                key = name.replace("attention.wqkv", f"self_attn.{letter}_proj")
                out[key] = rows.reshape(-1, *tensor.shape[1:])
            continue
        for stored, inside in INTERNLM2_PARTS.items():
            name = name.replace(stored, inside)
        out[name] = tensor
    return out


@pytest.mark.parametrize("name", FAMILIES)
def test_families(name: str, data: Path, tmp_path: Path) -> None:
    """The engine and transformers compute the same with what was written, and it is near to what it
    was made from."""
    model = FAMILIES[name]()
    source = save(model, tmp_path / "model", name)
    ids = reference.random_ids(60, model.config.vocab_size)
    before = reference.logprobs(model, ids)
    out = tmp_path / "awq"
    auto_awq(source, out, data, group_size=32, **CALIBRATION)
    weights = restored(out)
    if name == "internlm2":
        weights = as_llama_tensors(weights, model.config)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all("o_proj.bias" in key or "lm_head" in key for key in missing)
    with Engine.from_pretrained(
        out, device="cpu", dtype="float32", num_threads=2, session_len=256, max_batch_size=2
    ) as engine:
        assert engine.tokenizer.encode("the fox") == engine.tokenizer.encode("the fox")
        assert reference.compare(engine, model, ids, 16).largest < 1e-3
    after = reference.logprobs(model, ids)
    divergence = (before.exp() * (before - after)).sum(-1).mean()
    assert 0 < divergence < 0.5
    assert (out / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert not list(tmp_path.glob("awq.*"))


@pytest.mark.parametrize("name", ["llama", "llama-biases-one-head-each", "qwen2", "qwen3"])
def test_scaling_changes_no_output(name: str, tmp_path: Path) -> None:
    model = FAMILIES[name]()
    save(model, tmp_path)
    layer = DecoderLayer(Checkpoint(tmp_path), torch.device("cpu"))
    layer.read(1)
    hidden = torch.randn(2, 40, 64, generator=torch.Generator().manual_seed(1))
    hidden[..., 5] *= 30
    with LayerStatistics(layer, gram=True) as statistics:
        before = layer.run(hidden)
    weights = {part: layer.linear(part).weight.clone() for part in LINEARS}
    dtypes = {ATTN_NORM: torch.float32, MLP_NORM: torch.float32}
    LayerSearch(layer, statistics, 32, dtypes).scale()
    assert all(not torch.equal(layer.linear(part).weight, weights[part]) for part in LINEARS)
    torch.testing.assert_close(layer.run(hidden), before, rtol=1e-4, atol=1e-4)


def test_layout_of_one_layer() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 64, generator=generator)
    weight[3, :32] = 0.0
    weight[4, :32] = weight[4, :32].abs()
    least, largest = group_ranges(weight, 32)
    tensors = awq_gemm("x", quantize(weight, least, largest))
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == {
        "x.qweight": [64, 3], "x.qzeros": [2, 3], "x.scales": [2, 24]}  # fmt: skip
    q = unpack(tensors["x.qweight"])
    zeros, scales = unpack(tensors["x.qzeros"]), tensors["x.scales"]
    for n in range(24):
        for g in range(2):
            row = weight[n, 32 * g : 32 * (g + 1)]
            low, high = min(float(row.min()), 0.0), max(float(row.max()), 0.0)
            scale = float(torch.tensor((high - low) / 15).half()) or 1.0
            zero = min(max(round(-low / scale), 0), 15)
            assert float(scales[g, n]) == pytest.approx(scale)
            assert float(zeros[g, n]) == zero
            expected = [min(max(round(float(w) / scale) + zero, 0), 15) for w in row]
            assert (q[32 * g : 32 * (g + 1), n] - torch.tensor(expected)).abs().max() <= 1e-6
    meaning = restore(dict(tensors), "x", 32)
    torch.testing.assert_close(meaning, rounded(weight, least, largest))
    assert torch.equal(meaning[3, :32], torch.zeros(32))
    assert float((meaning - weight).abs().max()) < float((largest - least).max()) / 15


# The search.


def test_error_is_that_of_the_outputs() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 64, generator=generator) * torch.linspace(0.1, 3, 64)
    change = torch.randn(16, 64, generator=generator)
    expected = float((x @ change.T).square().sum(-1).mean())
    assert output_error(change, x.T @ x / 300) == pytest.approx(expected, rel=1e-4)


def outliers() -> tuple[torch.Tensor, torch.Tensor]:
    """(inputs, a weight), with a few channels of inputs far larger than the others."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(400, 128, generator=generator)
    x[:, ::25] *= 40
    return x, torch.randn(48, 128, generator=generator) * 0.1


def test_scales_and_clips_lessen_the_error() -> None:
    x, weight = outliers()
    gram = x.T @ x / len(x)

    def error(changed: torch.Tensor) -> float:
        return float(((changed - weight) @ x.T).square().mean())

    plain = error(rounded(weight, *group_ranges(weight, 32)))
    scales = search_scales([weight], x.abs().mean(0), gram, 32)
    assert scales[::25].min() > scales[1:25].max()
    scaled = weight * scales
    with_scales = error(rounded(scaled, *group_ranges(scaled, 32)) / scales)
    assert with_scales < 0.5 * plain
    # Without large channels nothing but clipping helps: it is never worse, group by group.
    even = torch.randn(400, 128, generator=torch.Generator().manual_seed(3))
    least, largest = search_clip(weight, even.T @ even / 400, 32)
    clipped = rounded(weight, least, largest) - weight
    whole = rounded(weight, *group_ranges(weight, 32)) - weight
    for g in range(4):
        part = slice(32 * g, 32 * (g + 1))
        ours = (clipped[:, part] @ even[:, part].T).square().mean(-1)
        theirs = (whole[:, part] @ even[:, part].T).square().mean(-1)
        assert (ours <= theirs * (1 + 1e-4)).all()
        assert (ours < theirs).any()


def test_heads_of_a_group_share_their_scales() -> None:
    x, weight = outliers()
    scales = search_scales([weight], x.abs().mean(0), x.T @ x / len(x), 32, (2, 4, 16))
    heads = scales.unflatten(0, (2, 4, 16))
    assert torch.equal(heads, heads[:, :1].expand(2, 4, 16))
    assert heads.std() > 0


def test_awq_beats_rounding_where_channels_stick_out(data: Path, tmp_path: Path) -> None:
    model = llama()
    with torch.no_grad():
        for layer in model.model.layers:
            for norm, linears in (
                (layer.input_layernorm, ("q", "k", "v")),
                (layer.post_attention_layernorm, ("gate", "up")),
            ):
                norm.weight[::21] *= 25
                for name in linears:
                    part = layer.self_attn if name in "qkv" else layer.mlp
                    getattr(part, f"{name}_proj").weight[:, ::21] /= 12
    source = save(model, tmp_path / "model")
    ids = load_samples(source, data, samples=2, seqlen=64, seed=9, chat=False)[0].tolist()
    before = reference.logits(model, ids)
    error = {}
    for scheme in ("awq", "rtn"):
        out = tmp_path / scheme
        auto_awq(source, out, data, scheme=scheme, group_size=32, **CALIBRATION)
        model.load_state_dict(restored(out))
        error[scheme] = float((reference.logits(model, ids) - before).square().mean())
    assert error["awq"] < 0.5 * error["rtn"]


def test_demo(demo_path: str, tmp_path: Path) -> None:
    """On other conversations, the divergence from the model's own distribution."""
    heldout = Path(__file__).resolve().parents[2] / "examples" / "train_demo" / "heldout.json"
    chats: list[str] = json.loads(heldout.read_text("utf-8"))["chats"]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"text": chat}) + "\n" for chat in chats[40:]))
    command = ["lite", "auto_awq", "--device", "cpu"]
    sample = ["--data", str(path), "--samples", "16", "--seqlen", "256"]
    assert main([*command, *sample, "--out", str(tmp_path / "awq")]) == 0
    assert main([*command, "--scheme", "rtn", "--out", str(tmp_path / "rtn")]) == 0
    model = LlamaForCausalLM.from_pretrained(demo_path, dtype="float32").eval()
    tokenizer = Tokenizer.from_pretrained(demo_path)
    texts = [tokenizer.encode(chat)[:200] for chat in chats[:24]]
    before = [reference.logprobs(model, ids) for ids in texts]
    divergence = {}
    for name in ("awq", "rtn"):
        model.load_state_dict(restored(tmp_path / name))
        total = 0.0
        for ids, expected in zip(texts, before, strict=True):
            after = reference.logprobs(model, ids)
            total += float((expected.exp() * (expected - after)).sum())
        divergence[name] = total / sum(map(len, texts))
    assert 0 < divergence["awq"] < 0.8 * divergence["rtn"]
    with Engine.from_pretrained(tmp_path / "awq", device="cpu", num_threads=2) as engine:
        assert engine.info.kv_dtype == "float16"
        prompt = engine.tokenizer.encode(engine.model.get_prompt("浙江的省会在哪?"))
        answer = reference.run(engine, prompt, do_sample=False, max_new_tokens=24)
        assert "杭州" in engine.tokenizer.decode(answer.token_ids)


# Statistics.


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "internlm2"])
def test_statistics_are_those_of_the_whole_model(name: str, data: Path, tmp_path: Path) -> None:
    model = FAMILIES[name]()
    source = save(model, tmp_path / "model", name)
    calibrate(source, data, tmp_path / "work", **CALIBRATION)
    ids = load_samples(source, data, seed=0, chat=False, **CALIBRATION)
    assert ids.shape == (8, 48)
    inputs: dict[str, torch.Tensor] = {}
    for path, module in model.named_modules():
        if path.endswith("_proj"):
            module.register_forward_pre_hook(
                lambda _, args, path=path: inputs.__setitem__(path, args[0].flatten(0, 1))
            )
    with torch.inference_mode():
        cache = model(torch.from_numpy(ids), use_cache=True).past_key_values
        windowed = name == "qwen2"  # whose cache keeps the newest keys alone
    stored = {"self_attn.q_proj": "attention.wqkv", "self_attn.o_proj": "attention.wo",
              "mlp.up_proj": "feed_forward.w3", "mlp.down_proj": "feed_forward.w2"}  # fmt: skip
    for index in range(3):
        tensors = load_file(tmp_path / "work" / "statistics" / f"{index:04d}.safetensors")
        for part in stored:
            x = inputs[f"model.layers.{index}.{part}"].abs()
            key = stored[part] if name == "internlm2" else part
            torch.testing.assert_close(tensors[f"{key}.input_max"], x.amax(0), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(
                tensors[f"{key}.input_mean"], x.mean(0), rtol=1e-4, atol=1e-5
            )
        if windowed and index > 0:
            continue
        for letter, kept in (("k", cache.layers[index].keys), ("v", cache.layers[index].values)):
            assert kept.shape == (8, 2, 48, 16)
            low, high = kept.amin((0, 2, 3)), kept.amax((0, 2, 3))
            close(tensors[f"{letter}_min"], low)
            close(tensors[f"{letter}_max"], high)


class Killed(BaseException):
    pass


@pytest.fixture
def dies(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """dies(n): the program is killed when it has done n layers. dies(-1): never again."""
    save_statistics = WorkDir.save
    after = -1

    def save_or_die(self: WorkDir, kind: str, layer: int, tensors: Tensors) -> None:
        if layer == after:
            raise Killed
        save_statistics(self, kind, layer, tensors)

    monkeypatch.setattr(WorkDir, "save", save_or_die)

    def set_after(layers: int) -> None:
        nonlocal after
        after = layers

    return set_after


@pytest.fixture
def read_layers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Indices of the layers that were computed."""
    layers: list[int] = []
    read = DecoderLayer.read

    def counted(self: DecoderLayer, index: int) -> None:
        layers.append(index)
        read(self, index)

    monkeypatch.setattr(DecoderLayer, "read", counted)
    return layers


def test_calibrate_goes_on(
    model_dir: Path,
    data: Path,
    tmp_path: Path,
    dies: Callable[[int], None],
    read_layers: list[int],
) -> None:
    calibrate(model_dir, data, tmp_path / "whole", **CALIBRATION)
    dies(1)
    with pytest.raises(Killed):
        calibrate(model_dir, data, tmp_path / "work", **CALIBRATION)
    dies(-1)
    read_layers.clear()
    calibrate(model_dir, data, tmp_path / "work", **CALIBRATION)
    assert read_layers == [1, 2]
    for index in range(3):
        name = f"statistics/{index:04d}.safetensors"
        assert (tmp_path / "work" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["run.json", "statistics"]
    read_layers.clear()
    calibrate(model_dir, data, tmp_path / "work", **CALIBRATION)
    assert read_layers == []


@pytest.mark.parametrize("scheme", ["awq", "rtn"])
def test_awq_goes_on(
    scheme: str,
    model_dir: Path,
    data: Path,
    tmp_path: Path,
    dies: Callable[[int], None],
    read_layers: list[int],
) -> None:
    options: dict[str, Any] = {"scheme": scheme, "group_size": 32, **CALIBRATION}
    auto_awq(model_dir, tmp_path / "whole", data, **options)
    dies(2)
    with pytest.raises(Killed):
        auto_awq(model_dir, tmp_path / "out", data, **options)
    assert not (tmp_path / "out").exists()
    dies(-1)
    read_layers.clear()
    auto_awq(model_dir, tmp_path / "out", data, **options)
    assert read_layers == [2]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "out")]
    assert weights[0] == weights[1]


def test_another_run_is_refused(model_dir: Path, data: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    calibrate(model_dir, data, work, samples=8, seqlen=48)
    with pytest.raises(InvalidArgumentError, match=r"whose samples is 8, not 4"):
        calibrate(model_dir, data, work, samples=4, seqlen=48)
    with pytest.raises(InvalidArgumentError, match=r"whose tokens is"):
        calibrate(model_dir, data, work, samples=8, seqlen=48, seed=1)
    calibrate(model_dir, data, work, samples=4, seqlen=48, restart=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(InvalidArgumentError, match=r"mine': it exists and is not an earlier run's"):
        calibrate(model_dir, data, tmp_path / "mine", **CALIBRATION)
    with pytest.raises(InvalidArgumentError, match=r"mine': it exists"):
        calibrate(model_dir, data, tmp_path / "mine", restart=True, **CALIBRATION)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_large_models_come_in_shards(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auto_awq(model_dir, tmp_path / "one", scheme="rtn", group_size=32)
    monkeypatch.setattr("treadle.lite.writer._SHARD_BYTES", 60_000)
    auto_awq(model_dir, tmp_path / "many", scheme="rtn", group_size=32)
    shards = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    tensors: Tensors = {}
    for shard in shards:
        tensors |= load_file(shard)
    expected = load_file(tmp_path / "one" / "model.safetensors")
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in tensors)
    Engine.from_pretrained(tmp_path / "many", device="cpu").close()
    auto_awq_from_shards = tmp_path / "again"
    with pytest.raises(UnsupportedError, match="quantised already"):
        auto_awq(tmp_path / "many", auto_awq_from_shards, scheme="rtn", group_size=32)


# Samples.


def test_samples_of_a_text(model_dir: Path, data: Path) -> None:
    options: dict[str, Any] = {"samples": 5, "seqlen": 40, "chat": False}
    ids = load_samples(model_dir, data, seed=0, **options)
    assert ids.shape == (5, 40)
    assert (ids[:, 0] == 0).all()  # BOS
    assert (ids[:, 1:] != 0).all()
    assert np.array_equal(ids, load_samples(model_dir, data, seed=0, **options))
    assert not np.array_equal(ids, load_samples(model_dir, data, seed=1, **options))
    everything = load_samples(model_dir, data, samples=10_000, seqlen=40, seed=0, chat=False)
    assert 5 < len(everything) < 10_000
    assert all(row.tolist() in everything.tolist() for row in ids)


def test_samples_of_records(demo_path: str, tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    path.write_text(json.dumps({"messages": messages}) + "\n\n" + '{"text": "plain text"}\n' * 20)
    options: dict[str, Any] = {"samples": 1, "seqlen": 400, "seed": 0}
    tokenizer = Tokenizer.from_pretrained(demo_path)

    def text(chat: bool) -> str:
        ids = load_samples(demo_path, path, chat=chat, **options)
        return tokenizer.decode(ids[0], skip_special_tokens=False)

    plain, chat = text(False), text(True)
    turn = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>"
    assert turn in plain
    assert turn in chat
    assert plain.count("<|im_start|>") == 2
    assert chat.count("<|im_start|>user\nplain text<|im_end|>") == 20
    assert chat.count("<s>") == 21


def test_samples_of_a_dataset(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Rows(list[dict[str, str]]):
        column_names = ["text"]  # noqa: RUF012

    rows = Rows([{"text": "the quick brown fox jumps"}] * 30)
    library: Any = types.ModuleType("datasets")
    library.load_from_disk = lambda path: {"test": Rows(), "train": rows}
    monkeypatch.setitem(sys.modules, "datasets", library)
    options: dict[str, Any] = {"samples": 2, "seqlen": 32, "seed": 0, "chat": False}
    assert load_samples(model_dir, tmp_path, **options).shape == (2, 32)
    Rows.column_names = ["label"]
    with pytest.raises(ConfigError, match="it has the columns label"):
        load_samples(model_dir, tmp_path, **options)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="pip install datasets"):
        load_samples(model_dir, tmp_path, **options)


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("short", "a.txt", r"data has \d+ tokens: at least 32"),
        (" \n", "a.txt", "empty, expected a text"),
        ('{"text": "a"}\n{"content": "b"}\n', "a.jsonl", r'a\.jsonl:2: expected .* "messages"'),
        ("{", "a.jsonl", r"a\.jsonl:1: malformed JSON"),
    ],
)
def test_wrong_data_is_refused(
    content: str, name: str, message: str, model_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises((ConfigError, InvalidArgumentError), match=message):
        calibrate(model_dir, tmp_path / name, tmp_path / "work")
    assert not (tmp_path / "work").exists()


# Errors.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 8}, "bits is 8: only 4"),
        ({"group_size": 48}, "group_size is 48: it must be one of 32, 64, 128"),
        ({"group_size": 64}, r"layers\.0\.mlp\.down_proj has 96 inputs, which 32 divides"),
        ({"scheme": "best"}, "scheme is 'best'"),
        ({"samples": 0}, "samples is 0"),
        ({"seqlen": 300}, "seqlen is 300: the model's max_position_embeddings is 256"),
        ({"device": "gpu"}, "device is 'gpu'"),
        ({"data": None}, "data is None"),
        ({"data": "missing.txt"}, r"data is 'missing\.txt': no such file"),
    ],
)
def test_wrong_options_are_refused(
    options: dict[str, Any], message: str, model_dir: Path, data: Path, tmp_path: Path
) -> None:
    options = {"data": data, "group_size": 32} | CALIBRATION | options
    with pytest.raises((InvalidArgumentError, UnsupportedError, NotFoundError), match=message):
        auto_awq(model_dir, tmp_path / "out", options.pop("data"), **options)
    assert not (tmp_path / "out").exists()


def test_a_full_directory_is_not_overwritten(model_dir: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="exists and is not empty"):
        auto_awq(model_dir, model_dir, scheme="rtn")


def test_missing_memory_is_explained(
    model_dir: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object) -> None:
        raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB.\nMore words.")

    monkeypatch.setattr(DecoderLayer, "run", run)
    with pytest.raises(OutOfMemoryError, match=r"2\.00 GiB\. Free it, or choose device \"cpu\""):
        calibrate(model_dir, data, tmp_path / "work", **CALIBRATION)


def change_config(directory: Path, **fields: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_unknown_families_are_refused(model_dir: Path, tmp_path: Path) -> None:
    change_config(model_dir, model_type="gpt2")
    with pytest.raises(UnsupportedError, match="model_type is 'gpt2': treadle lite knows llama, "):
        auto_awq(model_dir, tmp_path / "out", scheme="rtn")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), r"mlp\.up_proj\.weight is missing"),
        (lambda t: t.update({"model.layers.1.mlp.gate.weight": torch.zeros(2)}), "mlp.gate.weight"),
        (
            lambda t: t.update({"model.layers.1.mlp.up_proj.weight": torch.zeros(2, 2)}),
            r"layer 1, mlp\.up_proj\.weight has shape \[2, 2\], config\.json needs \[96, 64\]",
        ),
        (lambda t: t["model.layers.1.mlp.up_proj.weight"].fill_(np.nan), "not finite"),
    ],
)
def test_broken_models_are_refused(
    change: Callable[[Tensors], object], message: str, model_dir: Path, tmp_path: Path
) -> None:
    tensors = load_file(model_dir / "model.safetensors")
    change(tensors)
    save_file(tensors, model_dir / "model.safetensors", {"format": "pt"})
    with pytest.raises((InvalidModelError, UnsupportedError), match=message):
        auto_awq(model_dir, tmp_path / "out", scheme="rtn", group_size=32)


# Ranges of K and V.


@pytest.mark.parametrize("symmetric", [False, True])
def test_kv_qparams(symmetric: bool, model_dir: Path, data: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    calibrate(model_dir, data, work, **CALIBRATION)
    path = kv_qparams(work, model_dir, symmetric=symmetric)
    assert path == model_dir / "kv_qparams.safetensors"
    values = load_file(path)["kv_qparams"]
    assert values.shape == (3, 2, 2, 2)
    assert values.dtype == torch.float32
    for layer in range(3):
        tensors = load_file(work / "statistics" / f"{layer:04d}.safetensors")
        for which, letter in enumerate("kv"):
            for head in range(2):
                low = float(tensors[f"{letter}_min"][head])
                high = float(tensors[f"{letter}_max"][head])
                expected = (
                    (max(abs(low), abs(high)) / 127, 0.0)
                    if symmetric
                    else ((high - low) / 255, (low + high) / 2)
                )
                assert values[layer, which, head].tolist() == pytest.approx(expected, rel=1e-5)
    model = LlamaForCausalLM.from_pretrained(model_dir, dtype="float32").eval()
    ids = load_samples(model_dir, data, samples=2, seqlen=64, seed=9, chat=False)[0].tolist()
    with Engine.from_pretrained(
        model_dir, device="cpu", dtype="float32", quant_policy=8, session_len=256
    ) as engine:
        assert 0 < reference.compare(engine, model, ids, 8).largest < 0.3


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_kv_qparams_of_a_quantised_model(kv_heads: int, data: Path, tmp_path: Path) -> None:
    """AWQ scales V, and the ranges that it leaves are those of what it wrote."""
    model = llama(num_key_value_heads=kv_heads, attention_bias=True)
    with torch.no_grad():
        for layer in model.model.layers:
            for rows in (layer.self_attn.v_proj.weight, layer.self_attn.v_proj.bias):
                rows[::7] *= 20
    source = save(model, tmp_path / "model")
    work, out = tmp_path / "work", tmp_path / "awq"
    auto_awq(source, out, data, group_size=32, work_dir=work, **CALIBRATION)
    model.load_state_dict(restored(out))
    ids = load_samples(source, data, seed=0, chat=False, **CALIBRATION)
    with torch.inference_mode():
        cache = model(torch.from_numpy(ids), use_cache=True).past_key_values
    values = load_file(kv_qparams(work, out))["kv_qparams"]
    for layer in range(3):
        for which, kept in enumerate((cache.layers[layer].keys, cache.layers[layer].values)):
            low, high = kept.amin((0, 2, 3)), kept.amax((0, 2, 3))
            ratio = values[layer, which, :, 0] * 255 / (high - low)
            assert 0.8 < float(ratio.min()) <= float(ratio.max()) < 1.25
    with pytest.raises(InvalidArgumentError, match="the ranges of the model that auto_awq wrote"):
        kv_qparams(work, source)
    calibrate(source, data, tmp_path / "before", **CALIBRATION)
    with pytest.raises(InvalidArgumentError, match="AWQ has changed the ranges"):
        kv_qparams(tmp_path / "before", out)


def test_kv_qparams_errors(model_dir: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"nowhere: not a work directory, it has no run\.json"):
        kv_qparams(tmp_path / "nowhere", model_dir)
    work = tmp_path / "work"
    calibrate(model_dir, data, work, **CALIBRATION)
    with pytest.raises(NotFoundError, match="not a directory, expected a model"):
        kv_qparams(work, tmp_path / "nowhere")
    other = shutil.copytree(model_dir, tmp_path / "other")
    change_config(other, num_key_value_heads=4)
    with pytest.raises(InvalidArgumentError, match=r"of 4 KV heads, the statistics 3 .* of 2"):
        kv_qparams(work, other)
    (work / "statistics" / "0001.safetensors").unlink()
    with pytest.raises(InvalidArgumentError, match="statistics of 1 of 3 layers"):
        kv_qparams(work, model_dir)


# GPTQ, which another library does.


def test_gptq_says_what_is_missing(
    model_dir: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llmcompressor", None)
    with pytest.raises(ImportError, match=r'pip install "treadle\[gptq\]"'):
        gptq(model_dir, tmp_path / "out", data, **CALIBRATION)
    assert not (tmp_path / "out").exists()


def test_gptq_asks_for_what_the_engine_reads(
    model_dir: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []
    modules: dict[str, Any] = {
        name: types.ModuleType(name)
        for name in (
            "datasets",
            "llmcompressor",
            "llmcompressor.modifiers",
            "llmcompressor.modifiers.quantization",
        )
    }
    modules["datasets"].Dataset = types.SimpleNamespace(from_dict=lambda columns: columns)
    modules["llmcompressor"].oneshot = lambda **options: calls.append(options)
    modules["llmcompressor.modifiers.quantization"].GPTQModifier = lambda **options: options
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    gptq(model_dir, tmp_path / "out", data, group_size=32, **CALIBRATION)
    (call,) = calls
    weights = call["recipe"]["config_groups"]["group_0"]["weights"]
    assert weights == {
        "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32
    }  # fmt: skip
    assert call["recipe"]["ignore"] == ["lm_head"]
    ids = load_samples(model_dir, data, seed=0, chat=False, **CALIBRATION)
    assert call["dataset"]["input_ids"] == ids.tolist()
    assert (tmp_path / "out" / "tokenizer.json").exists()


# The command line and the package.


def test_commands(
    model_dir: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work, model = str(tmp_path / "work"), str(model_dir)
    sample = ["--data", str(data), "--samples", "4", "--seqlen", "32"]
    assert main(["lite", "calibrate", model, *sample, "--work-dir", work]) == 0
    assert main(["lite", "kv_qparams", work, "--out", model, "--symmetric"]) == 0
    assert (model_dir / "kv_qparams.safetensors").exists()
    out = str(tmp_path / "awq")
    awq = ["lite", "auto_awq", model, *sample, "--out", out, "--group-size", "32"]
    assert main([*awq, "--work-dir", str(tmp_path / "kept")]) == 0
    assert (tmp_path / "kept" / "statistics" / "0002.safetensors").exists()
    capsys.readouterr()
    assert main(awq) == 1
    assert "exists and is not empty" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["lite", "auto_awq", model, "--out", out, "--scheme", "magic"])


def test_the_package_imports_no_torch() -> None:
    script = (
        "import sys, treadle, treadle.lite\n"
        "from treadle.cli.main import build_parser\n"
        "build_parser()\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
        "sys.modules['torch'] = None\n"
        "try:\n    treadle.lite.calibrate\n"
        "except ImportError as error:\n    print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert 'needs torch: pip install "treadle[quantize]"' in run.stdout
