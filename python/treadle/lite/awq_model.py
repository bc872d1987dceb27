"""``treadle lite auto_awq``: 4-bit weights, by AWQ or by rounding to the nearest."""

from __future__ import annotations

import os
import shutil

import torch

from treadle import _checks as check
from treadle.errors import InvalidArgumentError, UnsupportedError
from treadle.lite.awq_search import LayerSearch
from treadle.lite.checkpoint import Checkpoint, layer_prefix
from treadle.lite.decoder_layer import DecoderLayer
from treadle.lite.families import ATTN_NORM, LINEARS, MLP_NORM, K, Q, V
from treadle.lite.int4 import BITS, GROUP_SIZES, Int4Rows, awq_gemm, group_ranges, quantize
from treadle.lite.statistics import LayerStatistics
from treadle.lite.walk import CalibrationData, choose_device, describe, walk
from treadle.lite.work_dir import WorkDir
from treadle.lite.writer import check_free, write_awq
from treadle.progress import ProgressBar

SCHEMES = ("awq", "rtn")


def check_options(bits: int, group_size: int, scheme: str) -> None:
    """Raises InvalidArgumentError or UnsupportedError."""
    if check.integer("bits", bits, 1) != BITS:
        raise UnsupportedError(f"bits is {bits}: only {BITS} is implemented")
    check.choice("group_size", group_size, GROUP_SIZES)
    check.choice("scheme", scheme, SCHEMES)


def auto_awq(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    data: str | os.PathLike[str] | None = None,
    *,
    scheme: str = "awq",
    bits: int = BITS,
    group_size: int = 128,
    samples: int = 128,
    seqlen: int = 512,
    seed: int = 0,
    chat: bool = False,
    work_dir: str | os.PathLike[str] | None = None,
    device: str = "auto",
    restart: bool = False,
    progress: bool | None = None,
) -> None:
    """Writes ``out``, a Hugging Face directory in AutoAWQ's "gemm" layout: 4-bit decoder layers,
    everything else as in ``model``.

    scheme: "awq" needs ``data``; "rtn" rounds to the nearest without a look at any, to compare
        with.
    data, samples, seqlen, seed, chat, device, restart, progress: as for ``calibrate``.
    work_dir: what is done so far; None = ``out`` with ".work" behind it, removed at the end. One
        that is named keeps the statistics, as ``calibrate`` writes them.
    """
    check_options(bits, group_size, scheme)
    check_free(out)
    checkpoint = Checkpoint(model)
    if scheme == "awq" and data is None:
        raise InvalidArgumentError('data is None: scheme "awq" needs a text to measure with')
    work = WorkDir(str(out).rstrip("/") + ".work" if work_dir is None else work_dir)
    run = {"command": "auto_awq", "scheme": scheme, "group_size": group_size}
    quantizer = _Quantizer(checkpoint, work, group_size)
    if data is None or scheme == "rtn":
        work.begin({**run, **describe(checkpoint)}, restart)
        _round_layers(checkpoint, quantizer, choose_device(device), work, progress)
    else:
        walk(
            checkpoint,
            CalibrationData(data, samples, seqlen, seed, chat),
            device,
            work,
            run,
            restart=restart,
            progress=progress,
            gram=True,
            sink=quantizer.scaled,
        )
    write_awq(checkpoint, work, out, group_size)
    if work_dir is None:
        shutil.rmtree(work.path)
    else:
        work.forget("layers")


def _round_layers(
    checkpoint: Checkpoint,
    quantizer: _Quantizer,
    device: torch.device,
    work: WorkDir,
    progress: bool | None,
) -> None:
    layer = DecoderLayer(checkpoint, device)
    first = work.done("layers")
    with ProgressBar(checkpoint.num_layers, progress, unit="layer") as bar:
        bar.update(first)
        for index in range(first, checkpoint.num_layers):
            layer.read(index)
            quantizer.plain(index, layer)
            bar.update()


class _Quantizer:
    """Leaves quantised layers in the work directory."""

    def __init__(self, checkpoint: Checkpoint, work: WorkDir, group_size: int) -> None:
        self._checkpoint = checkpoint
        self._work = work
        self._group_size = group_size

    def plain(self, index: int, layer: DecoderLayer) -> None:
        """As the weights are."""
        self._check_sizes(index, layer)
        self._save(index, layer, None)

    def scaled(self, index: int, layer: DecoderLayer, statistics: LayerStatistics) -> None:
        """By AWQ."""
        self._check_sizes(index, layer)
        stored = self._checkpoint.layer(index)
        dtypes = {
            norm: stored[f"{self._checkpoint.family.stored(norm)}.weight"].dtype
            for norm in (ATTN_NORM, MLP_NORM)
        }
        search = LayerSearch(layer, statistics, self._group_size, dtypes)
        search.scale()
        self._save(index, layer, search)

    def _save(self, index: int, layer: DecoderLayer, search: LayerSearch | None) -> None:
        family = self._checkpoint.family
        rows: dict[str, Int4Rows] = {}
        for name in LINEARS:
            with torch.inference_mode():
                weight = layer.linear(name).weight
                size = self._group_size
                ranges = group_ranges(weight, size) if search is None else search.ranges(name)
                rows[name] = quantize(weight, *ranges)
        if family.fused_qkv is not None:
            q, k, v = (rows.pop(name) for name in (Q, K, V))
            rows[Q] = Int4Rows(
                layer.join_rows(q.q, k.q, v.q),
                layer.join_rows(q.scales, k.scales, v.scales),
                layer.join_rows(q.zeros, k.zeros, v.zeros),
            )
        tensors: dict[str, torch.Tensor] = {}
        for name, part in rows.items():
            tensors |= awq_gemm(family.stored(name), part)
        weights = {f"{family.stored(name)}.weight" for name in rows}
        inside = dict(layer.module.named_parameters())
        for name, tensor in self._checkpoint.layer(index).items():
            if name not in weights:
                tensors[name] = self._changed(name, tensor, layer, inside)
        self._work.save(
            "layers", index, {name: t.cpu().contiguous().clone() for name, t in tensors.items()}
        )

    def _changed(
        self,
        stored: str,
        tensor: torch.Tensor,
        layer: DecoderLayer,
        inside: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        """A norm or bias as the layer has it now, in the type it had."""
        names = list(layer.split({stored: tensor}))
        with torch.no_grad():
            parts = [inside[name] for name in names]
            now = parts[0] if len(parts) == 1 else layer.join_rows(parts[0], parts[1], parts[2])
            return now.to(tensor.dtype)

    def _check_sizes(self, index: int, layer: DecoderLayer) -> None:
        for name in LINEARS:
            out, size = layer.linear(name).weight.shape
            if size % self._group_size:
                fits = [str(group) for group in GROUP_SIZES if size % group == 0]
                raise InvalidArgumentError(
                    f"group_size is {self._group_size}: {layer_prefix(index)}{name} has {size} "
                    f"inputs, which {', '.join(fits) or 'none of ' + str(GROUP_SIZES)} divides"
                )
            if out % 8:
                raise UnsupportedError(
                    f"{layer_prefix(index)}{name} has {out} outputs: AutoAWQ's layout stores them "
                    "in eights"
                )
