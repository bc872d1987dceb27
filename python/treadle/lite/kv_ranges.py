"""``treadle lite kv_qparams``: constant scales of an int8 KV cache."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from treadle.errors import InvalidArgumentError, NotFoundError
from treadle.lite.work_dir import WorkDir
from treadle.tokenization.files import read_json

FILE = "kv_qparams.safetensors"
#: In place of zero, which nothing can be divided by.
_LEAST_SCALE = 1e-8


def kv_qparams(
    work_dir: str | os.PathLike[str], out: str | os.PathLike[str], *, symmetric: bool = False
) -> Path:
    """Writes ``out``/kv_qparams.safetensors from the ranges in ``work_dir`` and returns its path.
    An engine that loads the directory ``out`` with quant_policy 8 uses them.

    work_dir: of ``calibrate`` on this model, or of the ``auto_awq`` that wrote it.

    Its tensor ``kv_qparams``, float32 [layers, 2 (K, V), kv_heads, 2 (scale, zero)]: a value is
    q * scale + zero.
    symmetric: scale = max|x| / 127 and zero = 0; else scale = (max - min) / 255 and
        zero = (min + max) / 2.

    Raises NotFoundError, InvalidArgumentError for statistics that are not complete or of another
    model than that in ``out``.
    """
    directory = Path(out)
    if not directory.is_dir():
        raise NotFoundError(f"out is {str(out)!r}: not a directory, expected a model or workspace")
    work = WorkDir(work_dir)
    layers = int(work.run()["layers"])
    done = work.done("statistics")
    if done < layers:
        raise InvalidArgumentError(
            f"work_dir is {str(work_dir)!r}: it has the statistics of {done} of {layers} layers; "
            "run treadle lite calibrate again, it goes on where it was"
        )
    least, largest = [], []
    for index in range(layers):
        tensors = work.load("statistics", index)
        least.append(torch.stack([tensors["k_min"], tensors["v_min"]]))
        largest.append(torch.stack([tensors["k_max"], tensors["v_max"]]))
    scale, zero = parameters(torch.stack(least), torch.stack(largest), symmetric)
    if (directory / "config.json").exists():
        config = read_json(directory / "config.json")
        _check_model(directory, config, work)
        _check_sizes(directory, config, scale)
    path = directory / FILE
    partial = directory / (FILE + ".partial")
    save_file(
        {"kv_qparams": torch.stack([scale, zero], -1)},
        partial,
        {"format": "treadle_kv_qparams", "mode": "symmetric" if symmetric else "asymmetric"},
    )
    os.replace(partial, path)
    return path


def parameters(
    least: torch.Tensor, largest: torch.Tensor, symmetric: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(scale, zero) of ranges, float32, of the same shape."""
    if symmetric:
        scale = torch.maximum(least.abs(), largest.abs()) / 127
        zero = torch.zeros_like(scale)
    else:
        scale = (largest - least) / 255
        zero = (least + largest) / 2
    return scale.clamp(min=_LEAST_SCALE), zero


def _check_model(directory: Path, config: dict[str, Any], work: WorkDir) -> None:
    """AWQ scales V: ranges of the model before it are not those of the model after it."""
    quantization = config.get("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    measured_after = work.run().get("command") == "auto_awq"
    if measured_after and method != "awq":
        raise InvalidArgumentError(
            f"out is {str(directory)!r}: {work.path} has the ranges of the model that auto_awq "
            "wrote, not of this one; measure it with treadle lite calibrate"
        )
    if method == "awq" and not measured_after:
        raise InvalidArgumentError(
            f"out is {str(directory)!r}: AWQ has changed the ranges that {work.path} has; use the "
            "work directory of treadle lite auto_awq, kept with --work-dir"
        )


def _check_sizes(directory: Path, config: dict[str, Any], scale: torch.Tensor) -> None:
    heads = config.get("num_key_value_heads") or config.get("num_attention_heads")
    sizes = (config.get("num_hidden_layers"), heads)
    if sizes != (scale.shape[0], scale.shape[2]):
        raise InvalidArgumentError(
            f"out is {str(directory)!r}: its config.json has {sizes[0]} layers of {sizes[1]} KV "
            f"heads, the statistics {scale.shape[0]} layers of {scale.shape[2]}"
        )
