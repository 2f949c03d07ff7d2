"""MXFP4: 4-bit floats in blocks of 32 that share a power-of-two scale.

    value = E2M1[code] · 2^(scale - 127)         blocks run along the input (last) axis

A byte holds two codes, the low nibble first. E2M1 is 0, .5, 1, 1.5, 2, 3, 4, 6 with a sign bit.
bfloat16 and float32 hold every value exactly (within their normal range), so decoding is lossless.
Format: OCP Microscaling Formats v1.0. Scale byte 255 means NaN there.

Weights stay packed: `packed_linear` decodes a tile of rows at a time, forward and backward.
"""

from functools import cache

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

BLOCK = 32
"""Weights that share one scale byte."""
TILE = 1 << 22
"""Weights decoded at a time: 16 MiB of float32."""
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@cache
def _pairs(device: torch.device) -> Tensor:
    """[256] int64, each holding the two float32 values of a byte side by side."""
    code = torch.tensor([*E2M1, *(-value for value in E2M1)])
    byte = torch.arange(256)
    return torch.stack([code[byte & 15], code[byte >> 4]], -1).view(torch.int64)[:, 0].to(device)


@cache
def _powers(device: torch.device) -> Tensor:
    """[256] float32, 2^(byte - 127); byte 255 is NaN."""
    power = torch.exp2(torch.arange(256, dtype=torch.float64) - 127)
    power[255] = torch.nan
    return power.float().to(device)


def unpack(
    blocks: UInt8[Tensor, "*rows block 16"],
    scales: UInt8[Tensor, "*rows block"],
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "*rows inner"]:
    """Decode to plain weights `[*rows, 32 · block]`."""
    if blocks.shape[:-1] != scales.shape or blocks.shape[-1] != BLOCK // 2:
        raise ValueError(
            f"unpack: blocks {tuple(blocks.shape)} need scales {tuple(blocks.shape[:-1])} "
            f"and 16 bytes a block; got scales {tuple(scales.shape)}"
        )
    pairs = _pairs(blocks.device).index_select(0, blocks.reshape(-1).int())
    values = pairs.view(torch.float32).view(*scales.shape, BLOCK)
    power = _powers(scales.device).index_select(0, scales.reshape(-1).int()).view(scales.shape)
    return values.mul_(power[..., None]).flatten(-2).to(dtype)


def pack(
    weight: Float[Tensor, "*rows inner"],
) -> tuple[UInt8[Tensor, "*rows block 16"], UInt8[Tensor, "*rows block"]]:
    """Encode to (blocks, scales): exponent floor(log2 max|w|) - 2, codes to the nearest value.

    Weights that were decoded from MXFP4 come back unchanged; larger than 6 · 2^e saturates.
    """
    if weight.shape[-1] % BLOCK:
        raise ValueError(f"pack: the last axis must be a multiple of 32; got {weight.shape[-1]}")
    blocked = weight.double().unflatten(-1, (-1, BLOCK))
    if not blocked.isfinite().all():
        raise ValueError("pack: weights must be finite")
    largest = blocked.abs().amax(-1).clamp_min(2.0**-125)
    exponent = (torch.frexp(largest).exponent - 3).clamp(-127, 127)
    scaled = torch.ldexp(blocked, -exponent[..., None]).abs()
    grid = torch.tensor(E2M1, dtype=torch.float64, device=weight.device)
    code = torch.bucketize(scaled.contiguous(), (grid[1:] + grid[:-1]) / 2)
    code = (code + 8 * torch.signbit(blocked)).to(torch.uint8)
    return code[..., 0::2] | (code[..., 1::2] << 4), (exponent + 127).to(torch.uint8)


def packed_linear(
    x: Float[Tensor, "row inner"],
    blocks: UInt8[Tensor, "outer block 16"],
    scales: UInt8[Tensor, "outer block"],
) -> Float[Tensor, "row outer"]:
    """x Wᵀ in float32 with W packed; at most `TILE` weights are decoded at a time."""
    if x.shape[-1] != scales.shape[-1] * BLOCK:
        raise ValueError(
            f"packed_linear: x ends in {x.shape[-1]}, the weight maps {scales.shape[-1] * BLOCK}"
        )
    if torch.is_grad_enabled() and x.requires_grad:
        return _PackedLinear.apply(x, blocks, scales)  # pyright: ignore[reportReturnType]
    return _project(x, blocks, scales)


def _tiles(blocks: Tensor, scales: Tensor):
    """Yield decoded rows [tile, inner] in order."""
    step = max(1, TILE // (scales.shape[-1] * BLOCK))
    for start in range(0, scales.shape[0], step):
        rows = slice(start, start + step)
        yield rows, unpack(blocks[rows], scales[rows])


def _project(x: Tensor, blocks: Tensor, scales: Tensor) -> Tensor:
    wide = x.float()
    parts = [wide @ weight.mT for _, weight in _tiles(blocks, scales)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


class _PackedLinear(torch.autograd.Function):
    """`_project` with a backward that decodes the packed weight again."""

    @staticmethod
    def forward(ctx, x: Tensor, blocks: Tensor, scales: Tensor) -> Tensor:
        ctx.save_for_backward(blocks, scales)
        ctx.dtype = x.dtype
        return _project(x, blocks, scales)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        total = None
        for rows, weight in _tiles(*ctx.saved_tensors):
            part = grad.float()[:, rows] @ weight
            total = part if total is None else total.add_(part)
        assert total is not None
        return total.to(ctx.dtype), None, None
