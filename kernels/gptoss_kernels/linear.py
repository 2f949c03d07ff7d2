"""Dense projection with weights stored in bfloat16: y = x Wᵀ + b, summed in float32.

The stored weight is widened tile by tile, so a 201,088-row unembedding never exists twice, and the
backward pass (to the activations only; weights are frozen) keeps the stored weight, not a copy.
"""

import torch
from jaxtyping import Float
from torch import Tensor

TILE = 1 << 23
"""Weights widened at a time: 32 MiB of float32."""


def linear(
    x: Float[Tensor, "*rows inner"],
    weight: Float[Tensor, "outer inner"],
    bias: Float[Tensor, " outer"] | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "*rows outer"]:
    """Project `x`; the result has `dtype` (default: that of `x`), rounded once."""
    if x.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"linear: x ends in {x.shape[-1]} but the weight maps {weight.shape[-1]} inputs"
        )
    if torch.is_grad_enabled() and x.requires_grad:
        y = _Linear.apply(x, weight)
    else:
        y = _project(x, weight)
    if bias is not None:
        y = y + bias.float()
    return y.to(dtype or x.dtype)


def _tiles(weight: Tensor) -> list[Tensor]:
    return [weight] if weight.dtype == torch.float32 else list(_split(weight))


def _split(weight: Tensor) -> tuple[Tensor, ...]:
    return weight.split(max(1, TILE // weight.shape[-1]))


def _project(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.float()
    parts = [wide @ tile.float().mT for tile in _tiles(weight)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


class _Linear(torch.autograd.Function):
    """`_project` with a backward that widens the stored weight again instead of keeping it."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.dtype = x.dtype
        return _project(x, weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        (weight,) = ctx.saved_tensors
        tiles = _tiles(weight)
        parts = grad.float().split([tile.shape[0] for tile in tiles], -1)
        total = parts[0] @ tiles[0].float()
        for part, tile in zip(parts[1:], tiles[1:], strict=True):
            total += part @ tile.float()
        return total.to(ctx.dtype), None
