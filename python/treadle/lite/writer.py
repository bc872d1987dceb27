"""Writes a Hugging Face directory with 4-bit layers."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from treadle.errors import InvalidArgumentError
from treadle.lite.checkpoint import Checkpoint, layer_prefix
from treadle.lite.work_dir import WorkDir

_SHARD_BYTES = 4 << 30
#: Weights in any form, and what lists them.
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx")


def check_free(out: str | os.PathLike[str]) -> None:
    """Raises InvalidArgumentError where a model must not be written."""
    path = Path(out)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InvalidArgumentError(f"out is {str(out)!r}: it exists and is not empty")


def copy_small_files(source: Path, target: Path) -> None:
    """Tokenizer, templates, licence and the like: all but weights and what ``target`` has."""
    for file in source.iterdir():
        weights = file.name.endswith((*_WEIGHTS, ".index.json"))
        if file.is_file() and not weights and not (target / file.name).exists():
            shutil.copy(file, target / file.name)


def write_awq(
    checkpoint: Checkpoint, work: WorkDir, out: str | os.PathLike[str], group_size: int
) -> None:
    """``work`` has the tensors of all layers; the rest is copied. ``out`` appears when it is
    complete."""
    path = Path(out)
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    copy_small_files(checkpoint.directory, partial)
    config = dict(checkpoint.config)
    config["quantization_config"] = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": group_size,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": [checkpoint.family.head],
    }
    text = json.dumps(config, ensure_ascii=False, indent=2) + "\n"
    (partial / "config.json").write_text(text, encoding="utf-8")
    _write_shards(partial, _tensors(checkpoint, work))
    if path.exists():
        path.rmdir()
    partial.rename(path)


def _tensors(checkpoint: Checkpoint, work: WorkDir) -> Iterator[tuple[str, torch.Tensor]]:
    layers = layer_prefix(0).removesuffix("0.")
    for name in checkpoint.names:
        if not name.startswith(layers):
            yield name, checkpoint.tensor(name)
    for index in range(checkpoint.num_layers):
        for name, tensor in work.load("layers", index).items():
            yield layer_prefix(index) + name, tensor


def _write_shards(directory: Path, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
    """One file where it is small, else shards and their index, as transformers writes them."""
    written: list[list[str]] = []
    shard: dict[str, torch.Tensor] = {}
    size = total = 0

    def flush() -> None:
        path = directory / f"{len(written)}.safetensors"
        save_file(shard, path, {"format": "pt"})
        # The library may give the owner alone access.
        path.chmod((directory / "config.json").stat().st_mode)
        written.append(list(shard))
        shard.clear()

    for name, tensor in tensors:
        length = tensor.numel() * tensor.element_size()
        if shard and size + length > _SHARD_BYTES:
            flush()
            size = 0
        shard[name] = tensor.contiguous()
        size += length
        total += length
    flush()
    if len(written) == 1:
        (directory / "0.safetensors").rename(directory / "model.safetensors")
        return
    weight_map: dict[str, Any] = {}
    for number, names in enumerate(written):
        file = f"model-{number + 1:05d}-of-{len(written):05d}.safetensors"
        (directory / f"{number}.safetensors").rename(directory / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
