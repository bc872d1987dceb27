"""``treadle lite gptq``: GPTQ (https://arxiv.org/abs/2210.17323) by the library llm-compressor."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from treadle import _checks as check
from treadle.errors import UnsupportedError
from treadle.lite.checkpoint import Checkpoint
from treadle.lite.int4 import BITS, GROUP_SIZES
from treadle.lite.walk import CalibrationData
from treadle.lite.writer import check_free, copy_small_files

_INSTALL = (
    "treadle lite gptq needs the library llm-compressor, which asks for certain versions of torch "
    'and transformers: pip install "treadle[gptq]", best into an environment of its own'
)


def gptq(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    data: str | os.PathLike[str],
    *,
    group_size: int = 128,
    samples: int = 128,
    seqlen: int = 512,
    seed: int = 0,
    chat: bool = False,
) -> None:
    """Writes ``out``, a Hugging Face directory in the layout of compressed-tensors
    (``pack-quantized``, symmetric, 4 bits): everything but the head is quantised.

    data, samples, seqlen, seed, chat: as for ``calibrate``. The library chooses the device: a GPU
    where there is one.

    Raises ImportError where it is not installed, UnsupportedError for a family whose code
    transformers does not have.
    """
    check.choice("group_size", group_size, GROUP_SIZES)
    check_free(out)
    checkpoint = Checkpoint(model)
    if not checkpoint.family.native:
        raise UnsupportedError(
            f"{model}/config.json: model_type is {checkpoint.family.name!r}: llm-compressor runs "
            "models of transformers alone; treadle lite auto_awq knows this family, too"
        )
    ids = CalibrationData(data, samples, seqlen, seed, chat).load(checkpoint)
    try:
        from datasets import Dataset
        from llmcompressor import oneshot
        from llmcompressor.modifiers.quantization import GPTQModifier
    except ImportError as error:
        raise ImportError(f"{_INSTALL} ({error})") from error
    from transformers import AutoModelForCausalLM

    weights: dict[str, Any] = {
        "num_bits": BITS,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": group_size,
    }
    recipe = GPTQModifier(
        config_groups={"group_0": {"targets": ["Linear"], "weights": weights}}, ignore=["lm_head"]
    )
    network = AutoModelForCausalLM.from_pretrained(checkpoint.directory, torch_dtype="auto")
    rows = torch.from_numpy(ids)
    oneshot(
        model=network,
        dataset=Dataset.from_dict(
            {"input_ids": rows.tolist(), "attention_mask": torch.ones_like(rows).tolist()}
        ),
        recipe=recipe,
        num_calibration_samples=len(ids),
        max_seq_length=ids.shape[1],
    )
    network.save_pretrained(out, save_compressed=True)
    copy_small_files(checkpoint.directory, Path(out))
