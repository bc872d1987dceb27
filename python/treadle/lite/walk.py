"""The samples' way through a model, a layer at a time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from treadle import _checks as check
from treadle.errors import InvalidArgumentError, OutOfMemoryError, UnsupportedError
from treadle.lite.checkpoint import Checkpoint
from treadle.lite.decoder_layer import DecoderLayer
from treadle.lite.samples import Samples, check_options, load_samples
from treadle.lite.statistics import LayerStatistics
from treadle.lite.work_dir import WorkDir
from treadle.progress import ProgressBar

#: Tokens that go through a layer together.
_BATCH_TOKENS = 4096

#: Gets a layer that has run and what was measured; it may change the layer's weights.
#: It leaves the layer's file of kind "layers" in the work directory.
LayerSink = Callable[[int, DecoderLayer, LayerStatistics], None]


@dataclass(frozen=True)
class CalibrationData:
    """Which samples; see ``samples.load_samples``."""

    data: str | os.PathLike[str]
    samples: int = 128
    seqlen: int = 512
    seed: int = 0
    chat: bool = False

    def load(self, checkpoint: Checkpoint) -> Samples:
        return load_samples(
            checkpoint.directory,
            self.data,
            samples=self.samples,
            seqlen=self.seqlen,
            seed=self.seed,
            chat=self.chat,
        )


def choose_device(name: str) -> torch.device:
    """``name``: "auto" (the first GPU that torch can use, else the CPU), "cpu", "cuda" or "cuda:N".
    Raises InvalidArgumentError or UnsupportedError."""
    kind, _, number = name.partition(":")
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    if kind != "cuda" or (number and not number.isdigit()) or name.endswith(":"):
        raise check.refuse("device", name, 'it must be "auto", "cpu", "cuda" or "cuda:N"')
    if not torch.cuda.is_available():
        raise UnsupportedError(f"device is {name!r}: torch {torch.__version__} sees no GPU")
    if int(number or 0) >= torch.cuda.device_count():
        raise check.refuse("device", name, f"torch sees {torch.cuda.device_count()} GPUs")
    return torch.device("cuda", int(number or 0))


@contextmanager
def explained_memory(device: torch.device) -> Iterator[None]:
    """Raises OutOfMemoryError in place of torch's."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"a layer does not fit the memory of {device}: {str(error).splitlines()[0]} Free it, "
            'or choose device "cpu"; what is done so far is kept'
        ) from error


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """The model, for a work directory."""
    return {
        "model": str(checkpoint.directory.resolve()),
        "model_files": checkpoint.fingerprint(),
        "layers": checkpoint.num_layers,
    }


def walk(
    checkpoint: Checkpoint,
    data: CalibrationData,
    device: str,
    work: WorkDir,
    run: Mapping[str, Any],
    *,
    restart: bool,
    progress: bool | None,
    gram: bool = False,
    sink: LayerSink | None = None,
) -> None:
    """Runs all layers that ``work`` does not have, and leaves each one's statistics there. Layers
    see what the model as it is computes, whatever ``sink`` does to the ones before.

    run: what decides the results besides model and samples. gram: see InputStatistics.
    """
    where = choose_device(device)
    check_options(data.samples, data.seqlen, data.seed)
    layer = DecoderLayer(checkpoint, where)
    if data.seqlen > layer.max_positions:
        raise InvalidArgumentError(
            f"seqlen is {data.seqlen}: the model's max_position_embeddings is {layer.max_positions}"
        )
    ids = data.load(checkpoint)
    run = {
        **run,
        **describe(checkpoint),
        "samples": int(ids.shape[0]),
        "seqlen": int(ids.shape[1]),
        "tokens": hashlib.sha256(ids.tobytes()).hexdigest(),
    }
    work.begin(run, restart)
    layers = checkpoint.num_layers
    with ProgressBar(layers, progress, unit="layer") as bar:
        kept = work.load_hidden()
        if kept is None:
            kinds = ("statistics",) if sink is None else ("statistics", "layers")
            if all(work.done(kind) == layers for kind in kinds):
                bar.update(layers)
                return
            first, hidden = 0, _embed(checkpoint, ids)
        else:
            first, hidden = kept
            bar.update(first)
        for index in range(first, layers):
            with explained_memory(where):
                layer.read(index)
                with LayerStatistics(layer, gram=gram) as statistics:
                    _run(layer, hidden, where, statistics)
                if sink is not None:
                    sink(index, layer, statistics)
            work.save("statistics", index, statistics.tensors(checkpoint.family.stored))
            if index + 1 < layers:
                work.save_hidden(index + 1, hidden)
            bar.update()
        work.forget("hidden")


def _embed(checkpoint: Checkpoint, ids: Samples) -> torch.Tensor:
    table = checkpoint.tensor(checkpoint.family.embedding)
    if int(ids.max()) >= table.shape[0]:
        raise InvalidArgumentError(
            f"data has token {int(ids.max())}: the model's embedding has {table.shape[0]} rows"
        )
    return table[torch.from_numpy(ids)].float()


def _run(
    layer: DecoderLayer, hidden: torch.Tensor, device: torch.device, statistics: LayerStatistics
) -> None:
    """Replaces the layer's input, [samples, tokens, hidden_size], by its output."""
    size = max(1, _BATCH_TOKENS // hidden.shape[1])
    for begin in range(0, hidden.shape[0], size):
        batch = hidden[begin : begin + size].to(device)
        hidden[begin : begin + size] = layer.run(batch, statistics.add_kv).to(hidden.device)
    if not bool(hidden.isfinite().all()):
        raise InvalidArgumentError("the model's activations are not finite: its weights are broken")
