"""AWQ (https://arxiv.org/abs/2306.00978): channels of large activations are scaled up before their
weights are rounded, by as much as keeps a layer's output nearest; then outliers are clipped.

The error of a layer whose weight changes by D is E|Dx|^2 = tr(D G D^T), with G = E[x x^T] measured
over all samples: exact, and independent of how many there were.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from treadle.lite.decoder_layer import DecoderLayer
from treadle.lite.families import ATTN_NORM, DOWN, GATE, MLP_NORM, UP, K, O, Q, V
from treadle.lite.int4 import group_ranges, rounded
from treadle.lite.statistics import LayerStatistics

#: Exponents of the activations' mean size that are tried; 0 is rounding as it is.
_ALPHAS = tuple(i / 20 for i in range(20))
_LEAST = 1e-4
#: Parts of a group's range that are tried.
_CLIPS = tuple(1 - i / 40 for i in range(20))
#: Elements of a weight that are tried to be clipped together, for memory's sake.
_CLIP_ELEMENTS = 1 << 24


def output_error(change: torch.Tensor, gram: torch.Tensor) -> float:
    """E|Dx|^2. change: [out, in]; gram: [in, in]."""
    return float(((change @ gram) * change).sum())


def search_scales(
    weights: Sequence[torch.Tensor],
    mean: torch.Tensor,
    gram: torch.Tensor,
    group_size: int,
    shared: tuple[int, int, int] | None = None,
) -> torch.Tensor:
    """[in] factors of the input channels of ``weights``, each [out, in], that have one input: the
    power of the activations' mean size, also over that of the weights, with the least sum of
    relative output errors.

    mean: [in] mean |x|. shared: (kv_heads, group, head_dim) where the channels are those of
    kv_heads * group heads, and all heads of a group must have the same factors.
    """
    activations, sizes = mean.clamp(min=_LEAST), _relative_size(weights, group_size)
    if shared is not None:
        activations, sizes = (
            x.unflatten(0, shared).mean(1, keepdim=True).expand(shared).flatten()
            for x in (activations, sizes)
        )
    powers = [max(output_error(weight, gram), 1e-30) for weight in weights]
    best, least = torch.ones_like(mean), float("inf")
    for by_weights in (False, True):
        for alpha in _ALPHAS:
            scales = activations.pow(alpha)
            if by_weights:
                scales = (scales / sizes.pow(1 - alpha)).clamp(min=_LEAST)
            scales = scales / (scales.max() * scales.min()).sqrt()
            error = 0.0
            for weight, power in zip(weights, powers, strict=True):
                scaled = weight * scales
                change = rounded(scaled, *group_ranges(scaled, group_size)) / scales - weight
                error += output_error(change, gram) / power
            if error < least:
                best, least = scales, error
    return best


def _relative_size(weights: Sequence[torch.Tensor], group_size: int) -> torch.Tensor:
    """[in] mean size of a channel's weights, each as a part of its group's largest."""
    total = torch.zeros_like(weights[0][0])
    for weight in weights:
        groups = weight.abs().unflatten(1, (-1, group_size))
        total += (groups / groups.amax(-1, keepdim=True).clamp(min=1e-9)).flatten(1).sum(0)
    return (total / sum(weight.shape[0] for weight in weights)).clamp(min=_LEAST)


def search_clip(
    weight: torch.Tensor, gram: torch.Tensor, group_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(least, largest) to represent of each group, [out, in / group_size]: the part of its range
    that keeps the group's contribution to the output nearest."""
    low, high = group_ranges(weight, group_size)
    blocks = gram.unflatten(0, (-1, group_size)).unflatten(2, (-1, group_size))
    own = blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # [groups, group_size, group_size]
    rows = max(1, _CLIP_ELEMENTS // weight.shape[1])
    factors = torch.ones_like(low)
    for begin in range(0, weight.shape[0], rows):
        part = slice(begin, begin + rows)
        w, least = weight[part], torch.full_like(low[part], float("inf"))
        for factor in _CLIPS:
            change = rounded(w, low[part] * factor, high[part] * factor) - w
            grouped = change.unflatten(1, (-1, group_size)).transpose(0, 1)
            error = ((grouped @ own) * grouped).sum(-1).T  # [rows, groups]
            better = error < least
            least = torch.where(better, error, least)
            factors[part] = torch.where(better, factor, factors[part])
    return low * factors, high * factors


class LayerSearch:
    """Scales a layer's weights in place, so that it computes what it did, and finds clip ranges.
    What goes to the cache as V is scaled, too: the statistics follow."""

    def __init__(
        self,
        layer: DecoderLayer,
        statistics: LayerStatistics,
        group_size: int,
        norm_dtypes: dict[str, torch.dtype],
    ) -> None:
        """norm_dtypes: in which the norms' weights are stored."""
        self._layer = layer
        self._statistics = statistics
        self._group_size = group_size
        self._norm_dtypes = norm_dtypes
        self._scales: dict[str, torch.Tensor] = {}

    def scale(self) -> None:
        """Each group of linear layers with one input, the factors taken out of what makes it."""
        with torch.inference_mode():
            heads = (self._layer.num_kv_heads, self._layer.group, self._layer.head_dim)
            self._scale_norm(ATTN_NORM, (Q, K, V))
            scales = self._search((O,), heads)
            self._multiply(O, scales)
            of_values = scales.unflatten(0, heads)[:, 0]
            self._divide_rows(V, of_values.flatten())
            self._statistics.divide_values(of_values)
            self._scale_norm(MLP_NORM, (GATE, UP))
            scales = self._search((DOWN,))
            self._multiply(DOWN, scales)
            self._divide_rows(UP, scales)

    def ranges(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Of one linear layer after ``scale``, to be quantised with. Q and K are not clipped: their
        product is what matters, not they."""
        with torch.inference_mode():
            weight = self._weight(name)
            if name in (Q, K):
                return group_ranges(weight, self._group_size)
            gram = self._statistics.input(name).gram
            if name in self._scales:
                gram = gram / self._scales[name] / self._scales[name][:, None]
            return search_clip(weight, gram, self._group_size)

    def _weight(self, name: str) -> torch.Tensor:
        return self._layer.linear(name).weight

    def _search(
        self, names: tuple[str, ...], shared: tuple[int, int, int] | None = None
    ) -> torch.Tensor:
        inputs = self._statistics.input(names[0])
        weights = [self._weight(name) for name in names]
        return search_scales(weights, inputs.mean, inputs.gram, self._group_size, shared)

    def _scale_norm(self, norm: str, names: tuple[str, ...]) -> None:
        weight = self._layer.module.get_submodule(norm).weight
        divided = (weight / self._search(names)).to(self._norm_dtypes[norm]).float()
        # The factors that the rounded norm stands for.
        scales = torch.where(divided == 0, 1.0, weight / divided)
        weight.copy_(torch.where(divided == 0, weight, divided))
        for name in names:
            self._multiply(name, scales)

    def _multiply(self, name: str, scales: torch.Tensor) -> None:
        self._weight(name).mul_(scales)
        self._scales[name] = scales

    def _divide_rows(self, name: str, scales: torch.Tensor) -> None:
        linear = self._layer.linear(name)
        linear.weight.div_(scales[:, None])
        if linear.bias is not None:
            linear.bias.div_(scales)
