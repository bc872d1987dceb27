"""Quantised weights against whole models of transformers: the families, the layout, and AWQ's
search against rounding."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    LlamaForCausalLM,
)

import reference
from lite_models import (
    CALIBRATION,
    FAMILIES,
    as_llama_tensors,
    llama,
    restore,
    restored,
    save,
    unpack,
)
from treadle import Engine
from treadle.cli import main
from treadle.lite import auto_awq
from treadle.lite.awq_search import LayerSearch, output_error, search_clip, search_scales
from treadle.lite.checkpoint import Checkpoint
from treadle.lite.decoder_layer import DecoderLayer
from treadle.lite.families import ATTN_NORM, LINEARS, MLP_NORM
from treadle.lite.int4 import awq_gemm, group_ranges, quantize, rounded
from treadle.lite.samples import load_samples
from treadle.lite.statistics import LayerStatistics
from treadle.tokenizer import Tokenizer


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
    heldout = Path(__file__).resolve().parents[3] / "examples" / "train_demo" / "heldout.json"
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
