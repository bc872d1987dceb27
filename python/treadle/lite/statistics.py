"""What is measured of a layer while it runs on the samples."""

from __future__ import annotations

from typing import Any

import torch

from treadle.lite.decoder_layer import DecoderLayer
from treadle.lite.families import DOWN, GATE, LINEARS, UP, O, Q

#: Linear layers that have the same input: name -> the one that is watched.
INPUT_OF = {name: {O: O, DOWN: DOWN, GATE: GATE, UP: GATE}.get(name, Q) for name in LINEARS}


class InputStatistics:
    """Of the input of a linear layer, by channel."""

    def __init__(self, *, gram: bool) -> None:
        """``gram``: also its second moments, from which the error of any change of the weights
        follows exactly: E|Dx|^2 = tr(D E[x x^T] D^T)."""
        self._wants_gram = gram
        self._count = 0
        self._sum: Any = None
        self._max: Any = None
        self._gram: Any = None

    def add(self, inputs: torch.Tensor) -> None:
        x = inputs.reshape(-1, inputs.shape[-1])
        size = x.abs()
        total, largest = size.sum(0, dtype=torch.float64), size.amax(0)
        product = x.T @ x if self._wants_gram else None
        if self._count == 0:
            self._sum, self._max, self._gram = total, largest, product
        else:
            self._sum += total
            self._max = torch.maximum(self._max, largest)
            if product is not None:
                self._gram += product
        self._count += x.shape[0]

    @property
    def mean(self) -> torch.Tensor:
        """[in] mean |x|, float32"""
        return (self._sum / self._count).float()

    @property
    def largest(self) -> torch.Tensor:
        """[in] max |x|"""
        return self._max

    @property
    def gram(self) -> torch.Tensor:
        """[in, in] mean of x x^T"""
        return self._gram / self._count


class LayerStatistics:
    """Watches a layer for the time of a ``with``."""

    def __init__(self, layer: DecoderLayer, *, gram: bool = False) -> None:
        self._layer = layer
        self._inputs = {name: InputStatistics(gram=gram) for name in set(INPUT_OF.values())}
        self._ranges: dict[str, Any] = {}  # (least, largest), each [kv_heads, head_dim]
        self._hooks: list[Any] = []

    def __enter__(self) -> LayerStatistics:
        for name, statistics in self._inputs.items():

            def watch(_: Any, inputs: Any, into: InputStatistics = statistics) -> None:
                into.add(inputs[0])

            self._hooks.append(self._layer.linear(name).register_forward_pre_hook(watch))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def add_kv(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Each [samples, kv_heads, tokens, head_dim], as the cache gets them."""
        for name, x in (("k", keys), ("v", values)):
            least, largest = x.amin((0, 2)), x.amax((0, 2))
            if name in self._ranges:
                least = torch.minimum(least, self._ranges[name][0])
                largest = torch.maximum(largest, self._ranges[name][1])
            self._ranges[name] = (least, largest)

    def divide_values(self, factors: torch.Tensor) -> None:
        """The ranges of V become those of a layer that computes V / factors.

        factors: [kv_heads, head_dim], above 0.
        """
        if "v" in self._ranges:
            least, largest = self._ranges["v"]
            self._ranges["v"] = (least / factors, largest / factors)

    def input(self, name: str) -> InputStatistics:
        """Of one of LINEARS."""
        return self._inputs[INPUT_OF[name]]

    def tensors(self, stored: Any) -> dict[str, torch.Tensor]:
        """For the statistics file. ``stored``: the checkpoint's name of a part."""
        out: dict[str, torch.Tensor] = {}
        for name in LINEARS:
            out[f"{stored(name)}.input_max"] = self.input(name).largest.float().cpu()
            out[f"{stored(name)}.input_mean"] = self.input(name).mean.cpu()
        for name, (least, largest) in self._ranges.items():
            out[f"{name}_min"] = least.amin(-1).float().cpu()
            out[f"{name}_max"] = largest.amax(-1).float().cpu()
        # Views of one memory cannot be saved.
        return {name: tensor.clone() for name, tensor in out.items()}
