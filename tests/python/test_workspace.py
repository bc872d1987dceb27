"""Workspaces: `treadle convert`, and what editing config.ini does."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

import quantized_models
import reference
import treadle
from devices import Device
from treadle import Engine, EngineConfig
from treadle.cli.main import main
from treadle.errors import (
    ChatTemplateError,
    InvalidArgumentError,
    InvalidModelError,
    NotFoundError,
    TreadleError,
    UnsupportedError,
)
from treadle.workspace import convert

QUESTION = "What is 37 + 48?"


def load(path: str | Path, **options: Any) -> Engine:
    return Engine.from_pretrained(
        path, **({"device": "cpu", "num_threads": 2, "max_batch_size": 2} | options)
    )


def answer(engine: Engine, prompt: list[int], new_tokens: int = 24) -> Any:
    """Everything that a greedy request gives, to the last bit."""
    output = reference.run(
        engine, prompt, max_new_tokens=new_tokens, do_sample=False, logprobs=3, prompt_logprobs=2,
        ignore_eos=True,
    )  # fmt: skip
    return output.token_ids.tolist(), output.logprobs, output.prompt_logprobs


def edit(workspace: Path, **values: object) -> None:
    path = workspace / "config.ini"
    text = path.read_text()
    for key, value in values.items():
        line = f"{key} = {value}"
        text, found = re.subn(rf"^{key} = .*$", line, text, flags=re.MULTILINE)
        if not found:
            text += line + "\n"
    path.write_text(text)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory, demo_path: str) -> Path:
    """Of the demo model; not to be changed."""
    return convert(demo_path, tmp_path_factory.mktemp("converted") / "demo")


@pytest.fixture
def workspace(converted: Path, tmp_path: Path) -> Path:
    """One to be changed."""
    return Path(shutil.copytree(converted, tmp_path / "workspace"))


def test_it_is_the_same_model(converted: Path, demo_path: str) -> None:
    with load(demo_path) as original, load(converted) as engine:
        prompt = original.tokenizer.encode(original.model.get_prompt(QUESTION))
        assert engine.tokenizer.encode(engine.model.get_prompt(QUESTION)) == prompt
        assert answer(engine, prompt) == answer(original, prompt)
        assert engine.model.name is None  # the model's own template
        for name in ("weight_dtype", "weight_bytes", "num_parameters", "eos_token_ids",
                     "kv_dtype", "session_len", "architecture"):  # fmt: skip
            assert getattr(engine.info, name) == getattr(original.info, name)
    with treadle.pipeline(converted, device="cpu") as pipe:
        assert "85" in pipe(QUESTION, do_sample=False).text


def test_it_loads_on_every_device(device: Device, converted: Path, demo_path: str) -> None:
    options: dict[str, Any] = {"max_new_tokens": 24, "do_sample": False, "logprobs": 1}
    contents = []
    for path in (demo_path, converted):
        with device.load(path, max_batch_size=2) as engine:
            prompt = engine.tokenizer.encode(engine.model.get_prompt(QUESTION))
            contents.append(device.content([reference.run(engine, prompt, **options)]))
    assert contents[0] == contents[1]


@pytest.mark.parametrize(
    "layout",
    [
        quantized_models.Layout("awq", 32),
        quantized_models.Layout("gptq", 64, scattered=True),
        quantized_models.Layout("packed", -1, symmetric=True, scale_dtype=torch.bfloat16),
    ],
    ids=str,
)
def test_four_bit_weights(layout: quantized_models.Layout, device: Device, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    quantized_models.make(layout, source, head=layout.group == 32)
    prompt = reference.random_ids(40, 328)
    options: dict[str, Any] = {"max_new_tokens": 24, "do_sample": False, "logprobs": 3,
                               "prompt_logprobs": 2, "ignore_eos": True}  # fmt: skip
    with device.load(source, session_len=512, max_batch_size=2) as original:
        expected = device.content([reference.run(original, prompt, **options)])
    workspace = convert(source, tmp_path / "deep" / "workspace")
    shutil.rmtree(source)
    assert "weight_type = int4" in (workspace / "config.ini").read_text()
    assert f"group_size = {layout.group}\n" in (workspace / "config.ini").read_text()
    with device.load(workspace, session_len=512, max_batch_size=2) as engine:
        assert device.content([reference.run(engine, prompt, **options)]) == expected


@pytest.mark.parametrize("policy", [4, 8])
def test_quant_policy(policy: int, device: Device, workspace: Path) -> None:
    edit(workspace, quant_policy=policy)
    with device.load(workspace) as engine:
        assert engine.info.kv_dtype == "int8"
        assert not engine.info.kv_static_ranges
        prompt = engine.tokenizer.encode(engine.model.get_prompt(QUESTION))
        assert "85" in engine.tokenizer.decode(answer(engine, prompt)[0])
    with device.load(workspace, quant_policy=0) as engine:  # what is given has the last word
        assert engine.info.kv_dtype == "float16"
    save_file({"kv_qparams": torch.full((8, 2, 2, 2), 0.05)}, workspace / "kv_qparams.safetensors")
    with device.load(workspace) as engine:
        assert (engine.info.kv_dtype, engine.info.kv_static_ranges) == ("int8", True)


def test_options_can_be_edited(workspace: Path) -> None:
    edit(workspace, session_len=640, max_batch_size=5, cache_max_entry_count=33,
         max_prefill_token_num=77)  # fmt: skip
    with Engine.from_pretrained(workspace, device="cpu") as engine:
        assert engine.info.session_len == 640
        assert engine.info.max_batch_size == 5
        assert engine.info.kv_blocks == 33
        assert engine.info.max_prefill_token_num == 77
    with load(workspace, session_len=320, cache_max_entry_count=12) as engine:
        assert engine.info.session_len == 320
        assert engine.info.max_batch_size == 2
        assert engine.info.kv_blocks == 12


def test_end_id(workspace: Path) -> None:
    with load(workspace) as engine:
        prompt = engine.tokenizer.encode(engine.model.get_prompt(QUESTION))
        ids = answer(engine, prompt, 4)[0]
    edit(workspace, end_id=f"2, {ids[1]}")
    with load(workspace) as engine:
        assert engine.info.eos_token_ids == [2, ids[1]]
        output = reference.run(engine, prompt, max_new_tokens=9, do_sample=False)
        assert (output.token_ids.tolist(), output.finish_reason) == (ids[:1], "stop")


def test_rope_scaling_and_logn(workspace: Path, demo_path: str) -> None:
    edit(workspace, rope_scaling_factor=2.0, use_logn_attn=1, session_len=3000)
    prompt = reference.random_ids(2100, 4096)
    options: dict[str, Any] = {"session_len": 3000, "rope_scaling_factor": 2.0}
    with load(workspace) as engine, load(demo_path, use_logn_attn=True, **options) as original:
        assert answer(engine, prompt, 2) == answer(original, prompt, 2)
    with load(workspace, use_logn_attn=False) as engine, load(demo_path, **options) as original:
        assert answer(engine, prompt, 2) == answer(original, prompt, 2)


def test_options_of_convert_are_kept(demo_path: str, tmp_path: Path) -> None:
    config = EngineConfig(session_len=512, quant_policy=8, max_batch_size=3, use_logn_attn=True)
    workspace = convert(demo_path, tmp_path / "w", model_name="qwen", config=config)
    text = (workspace / "config.ini").read_text()
    for line in ("session_len = 512", "quant_policy = 8", "max_batch_size = 3",
                 "use_logn_attn = 1", "model_name = qwen"):  # fmt: skip
        assert f"\n{line}\n" in text
    with Engine.from_pretrained(workspace, device="cpu") as engine:
        assert (engine.info.kv_dtype, engine.info.session_len) == ("int8", 512)
        assert engine.info.model_name == "qwen"


def test_model_name_picks_the_format(workspace: Path) -> None:
    """Of a model without a template of its own; an argument has the last word."""
    path = workspace / "tokenizer_config.json"
    fields = json.loads(path.read_text())
    fields.pop("chat_template", None)
    path.write_text(json.dumps(fields))
    (workspace / "chat_template.jinja").unlink(missing_ok=True)
    with load(workspace) as engine:
        assert engine.model.is_plain
    edit(workspace, model_name="internlm2-chat-7b")
    with load(workspace) as engine:
        assert engine.model.name == "internlm2"
    with load(workspace, model_name="vicuna") as engine:
        assert engine.model.name == "vicuna"
    edit(workspace, model_name="nobody")
    with load(workspace) as engine, pytest.raises(ChatTemplateError, match="'nobody'"):
        _ = engine.model


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        ({"num_layer": 9}, InvalidModelError, r'num_layer is "9": the weights have 8'),
        ({"kv_head_num": 4}, InvalidModelError, r'kv_head_num is "4": the weights have 2'),
        ({"weight_type": "bf16"}, InvalidModelError, r'weight_type is "bf16": .*have fp16'),
        ({"quant_policy": 3}, InvalidModelError, r'quant_policy is "3"'),
        ({"session_len": "long"}, InvalidModelError, r'session_len is "long"'),
        ({"quant_polcy": 8}, InvalidModelError, r"quant_polcy.*did you mean quant_policy\?"),
        ({"tensor_para_size": 2}, UnsupportedError, r"tensor_para_size is 2"),
    ],
)
def test_mistakes_are_named(
    values: dict[str, object], kind: type[TreadleError], message: str, workspace: Path
) -> None:
    edit(workspace, **values)
    with pytest.raises(kind, match=rf"^config\.ini: line \d+: .*{message}"):
        load(workspace)


def test_keys_of_lmdeploy_are_noted(workspace: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(workspace, cache_block_seq_len=128, step_length=1)
    with caplog.at_level(logging.WARNING, "treadle"), load(workspace) as engine:
        assert engine.info.ignored_keys == "cache_block_seq_len, step_length"
    assert "cache_block_seq_len, step_length" in caplog.text


def test_damage_is_named(workspace: Path) -> None:
    shard = workspace / "weights" / "rank0" / "layer-00003.safetensors"
    data = shard.read_bytes()
    shard.write_bytes(data[:-9])
    with pytest.raises(InvalidModelError, match=r"layer-00003\.safetensors"):
        load(workspace)
    shard.unlink()
    with pytest.raises(NotFoundError, match=r"layer-00003\.safetensors"):
        load(workspace)


def test_only_new_directories_are_written(demo_path: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "mine").write_text("precious")
    with pytest.raises(InvalidArgumentError, match="exists already"):
        convert(demo_path, target)
    assert [file.name for file in target.iterdir()] == ["mine"]
    (target / "mine").unlink()
    assert convert(demo_path, target) == target  # it was empty
    with pytest.raises(InvalidArgumentError, match="is a workspace already"):
        convert(target, tmp_path / "again")


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    reference.save(reference.build(LlamaForCausalLM, config), source)
    with pytest.raises(ChatTemplateError, match="nobody"):
        convert(source, tmp_path / "out", model_name="nobody")
    with pytest.raises(UnsupportedError, match="tp = 2"):
        convert(source, tmp_path / "out", config=EngineConfig(tp=2))
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InvalidModelError, match=r"model\.safetensors"):
        convert(source, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_files_that_go_along(demo_path: str, tmp_path: Path) -> None:
    source = Path(shutil.copytree(demo_path, tmp_path / "source"))
    (source / "LICENSE").write_text("terms")
    (source / "kv_qparams.safetensors").write_bytes(b"")
    (source / "training.log").write_text("noise")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    workspace = convert(source, tmp_path / "workspace")
    names = {str(file.relative_to(workspace)) for file in workspace.rglob("*")}
    assert names >= {"LICENSE", "kv_qparams.safetensors", "config.json", "tokenizer.json",
                     "additional_chat_templates/tool_use.jinja"}  # fmt: skip
    assert not names & {"training.log", "model.safetensors"}


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "workspace")
    assert main(["convert", "--out", out, "--quant-policy", "8", "--session-len", "700"]) == 0
    assert "config.ini" in capsys.readouterr().out
    arguments = ["--device", "cpu", "--num-threads", "2"]
    assert main(["generate", out, "-p", QUESTION, "--greedy", *arguments]) == 0
    assert "85" in json.loads(capsys.readouterr().out)["text"]
    assert main(["info", out, "--json", *arguments]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kv_dtype"], facts["session_len"]) == ("int8", 700)
    assert facts["weight_files"] == 10
    assert main(["convert", "--out", out]) == 1
    assert "exists already" in capsys.readouterr().err
    with pytest.raises(SystemExit) as usage:
        main(["convert", "--out", out, "--quant-policy", "5"])
    assert usage.value.code == 2
