"""``treadle lite calibrate``: activation statistics of a model."""

from __future__ import annotations

import os

from treadle.lite.checkpoint import Checkpoint
from treadle.lite.walk import CalibrationData, walk
from treadle.lite.work_dir import WorkDir


def calibrate(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    work_dir: str | os.PathLike[str],
    *,
    samples: int = 128,
    seqlen: int = 512,
    seed: int = 0,
    chat: bool = False,
    device: str = "auto",
    restart: bool = False,
    progress: bool | None = None,
) -> None:
    """Writes ``work_dir``/statistics/NNNN.safetensors for each layer, all float32:

    - ``<linear layer>.input_max``, ``.input_mean`` [in]: max |x| and mean |x| of its input;
    - ``k_min``, ``k_max``, ``v_min``, ``v_max`` [kv_heads]: ranges of K, after RoPE, and V.

    data, samples, seqlen, seed, chat: see ``samples.load_samples``.
    device: "auto", "cpu", "cuda" or "cuda:N", for torch.
    restart: forget what ``work_dir`` holds; else a run that was killed goes on at the layer where
        it was, and one of other options is refused.
    progress: progress bar; None shows one on a terminal.
    """
    checkpoint = Checkpoint(model)
    walk(
        checkpoint,
        CalibrationData(data, samples, seqlen, seed, chat),
        device,
        WorkDir(work_dir),
        {"command": "calibrate"},
        restart=restart,
        progress=progress,
    )
