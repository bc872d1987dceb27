"""4-bit numbers with a scale and a zero point for each group of inputs, and AutoAWQ's "gemm" layout
of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

BITS = 4
LEVELS = 2**BITS - 1
GROUP_SIZES = (32, 64, 128)

#: Which of eight neighbouring columns stands where, from the lowest bits up.
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class Int4Rows:
    """A weight [out, in]: (q - zero) * scale. Each row stands for itself."""

    #: [out, in] uint8, 0 to 15
    q: torch.Tensor
    #: [out, in / group] float16
    scales: torch.Tensor
    #: [out, in / group] uint8, 0 to 15
    zeros: torch.Tensor

    def restore(self) -> torch.Tensor:
        """[out, in] float32"""
        groups = self.scales.shape[1]
        q = self.q.float().unflatten(1, (groups, -1))
        return ((q - self.zeros.float()[..., None]) * self.scales.float()[..., None]).flatten(1)


def group_ranges(weight: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(least, largest) of each group of a weight [out, in], each [out, in / group_size]."""
    groups = weight.unflatten(1, (-1, group_size))
    return groups.amin(-1), groups.amax(-1)


def scales_and_zeros(
    least: torch.Tensor, largest: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 both, the scales as float16 holds them. Zero is always among the 16 values, as in
    AutoAWQ: its zero point is one of them."""
    least, largest = least.clamp(max=0), largest.clamp(min=0)
    scales = ((largest - least) / LEVELS).half().float()
    scales = torch.where(scales == 0, 1.0, scales)
    return scales, (-least / scales).round().clamp(0, LEVELS)


def quantize(weight: torch.Tensor, least: torch.Tensor, largest: torch.Tensor) -> Int4Rows:
    """weight: [out, in] float32. least, largest: [out, groups], the ranges to represent; what lies
    outside is clipped."""
    scales, zeros = scales_and_zeros(least, largest)
    q = _round(weight, scales, zeros)
    return Int4Rows(q.to(torch.uint8), scales.half(), zeros.to(torch.uint8))


def rounded(weight: torch.Tensor, least: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    """The float32 weight that ``quantize`` of the same would stand for."""
    scales, zeros = scales_and_zeros(least, largest)
    q = _round(weight, scales, zeros).unflatten(1, (scales.shape[1], -1))
    return ((q - zeros[..., None]) * scales[..., None]).flatten(1)


def _round(weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    groups = weight.unflatten(1, (scales.shape[1], -1))
    return ((groups / scales[..., None]).round() + zeros[..., None]).clamp(0, LEVELS).flatten(1)


def awq_gemm(name: str, rows: Int4Rows) -> dict[str, torch.Tensor]:
    """AutoAWQ's tensors: ``qweight`` int32 [in, out / 8], ``qzeros`` int32 [in / group, out / 8],
    ``scales`` float16 [in / group, out]."""
    return {
        f"{name}.qweight": _pack(rows.q.T),
        f"{name}.qzeros": _pack(rows.zeros.T),
        f"{name}.scales": rows.scales.T.contiguous(),
    }


def _pack(values: torch.Tensor) -> torch.Tensor:
    eights = values.to(torch.int32).unflatten(1, (-1, 8))
    words = torch.zeros_like(eights[..., 0])
    for place, column in enumerate(_ORDER):
        words |= eights[..., column] << (BITS * place)
    return words.contiguous()
