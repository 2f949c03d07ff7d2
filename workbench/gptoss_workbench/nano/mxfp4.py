"""MXFP4 rounding for training and export: blocks of 32 share a power of two, values have 4 bits.

value = s · 2^e,   s in ±{0, ½, 1, 1½, 2, 3, 4, 6},   e = ⌊log2 max|block|⌋ - 2
(one higher where the block's maximum would otherwise exceed 7 and be clipped hard).
"""

import torch
from torch import Tensor

MAGNITUDES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def scale_exponents(w: Tensor) -> Tensor:
    """One exponent per block of 32 along the last axis, as fp32."""
    top = w.unflatten(-1, (-1, 32)).abs().amax(-1).clamp_min(2.0**-100)
    e = torch.floor(torch.log2(top)) - 2
    return torch.where(top > 7 * torch.exp2(e), e + 1, e)


def round_to_grid(w: Tensor) -> tuple[Tensor, Tensor]:
    """(s, e): the rounded values in units of their block's scale [..., K], and the exponents."""
    e = scale_exponents(w)
    s = w.unflatten(-1, (-1, 32)) * torch.exp2(-e)[..., None]
    size = s.abs()
    step = 0.5 + 0.5 * (size >= 2) + (size >= 4)  # the grid's spacing: ½ below 2, 1 below 4, 2
    return (torch.round(s / step) * step).clamp_(-6, 6).flatten(-2), e


def quantize(w: Tensor) -> Tensor:
    """The MXFP4 value nearest to each weight (fp32 in, fp32 out)."""
    s, e = round_to_grid(w)
    return (s.unflatten(-1, (-1, 32)) * torch.exp2(e)[..., None]).flatten(-2)


def pack(w: Tensor) -> tuple[Tensor, Tensor]:
    """Blocks uint8 [..., K/32, 16], low nibble first; scale bytes uint8 [..., K/32], e + 127."""
    s, e = round_to_grid(w)
    code = torch.searchsorted(MAGNITUDES, s.abs()) + 8 * (s < 0)
    code = code.to(torch.uint8).unflatten(-1, (-1, 32))
    return code[..., 0::2] | (code[..., 1::2] << 4), (e + 127).to(torch.uint8)


def unpack(blocks: Tensor, scales: Tensor) -> Tensor:
    """The fp32 weights [..., K] of packed blocks."""
    code = torch.stack([blocks & 15, blocks >> 4], -1).flatten(-2).long()
    value = MAGNITUDES[code & 7] * (1 - 2 * (code >> 3))
    return (value * torch.exp2(scales.float() - 127)[..., None]).flatten(-2)


class StraightThrough(torch.autograd.Function):
    """Quantises in the forward pass; the gradient passes as if it had not."""

    @staticmethod
    def forward(ctx, w: Tensor) -> Tensor:
        return quantize(w)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> Tensor:
        return grads[0]
