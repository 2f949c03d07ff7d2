"""KL to the final distribution with its gradient, one tile of the vocabulary at a time.

    KL(f || x) = E_f[l_f - l_x] - logsumexp(l_f) + logsumexp(l_x)        l = W_U (normed residual)
    dKL / dx   = W_U^T (softmax(l_x) - softmax(l_f))

The backward pass walks the tiles again instead of keeping a [row, vocab] tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gptoss_kernels.lens import RunningSum, tiles


def kl_to_final(
    model: Any, x: Float[Tensor, "layer row d_model"], final: Float[Tensor, "row d_model"]
) -> Float[Tensor, "layer row"]:
    """KL(final || x) in nats of normed residuals; differentiable in `x`."""
    return _TiledKL.apply(x, final, model)


class _TiledKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, final: Tensor, model: Any) -> Tensor:
        own, ends = RunningSum(x[..., 0].float()), RunningSum(final[:, 0].float())
        gap = torch.zeros_like(own.total)
        for logits, target, _ in _logits(model, x, final):
            own.add(logits)
            keep, weight = ends.add(target)
            gap = gap * keep + (weight * (target - logits)).sum(-1)
        ctx.save_for_backward(x, final, own.log_sum_exp, ends.log_sum_exp)
        ctx.model = model
        return gap / ends.total - ends.log_sum_exp + own.log_sum_exp

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, final, own, ends = ctx.saved_tensors
        total = torch.zeros_like(x, dtype=torch.float32)
        for logits, target, weight in _logits(ctx.model, x, final):
            moved = (logits - own[..., None]).exp() - (target - ends[:, None]).exp()
            total += moved @ weight
        return (total * grad[..., None]).to(x.dtype), None, None


def _logits(model: Any, x: Tensor, final: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Of every tile: logits of x, logits of final, and the tile's weight in float32."""
    wide, ends = x.float(), final.float()
    for _, tile in tiles(model.unembed.weight):
        weight = tile.float()
        yield wide @ weight.mT, ends @ weight.mT, weight
