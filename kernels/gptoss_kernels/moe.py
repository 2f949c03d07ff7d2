"""The mixture of experts: every token through its k chosen experts, weighed and summed.

    u_e = W1_e t + b1_e;   a_e = swiglu(u_e);   y_e = W2_e a_e + b2_e
    y   = Σ_slot weight_slot · y_expert(slot)        b2 is inside the weighted sum

Rows are sorted by expert, so each packed weight is decoded once; a slot is a token's j-th ranked
expert. The sum runs over slots in rank order, whatever else is in the batch.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from gptoss_kernels.mxfp4 import packed_linear
from gptoss_kernels.rms_norm import Look
from gptoss_kernels.swiglu import swiglu


class Experts(NamedTuple):
    """One layer's packed experts, as they lie in the checkpoint."""

    gate_up_blocks: UInt8[Tensor, "expert gate_up block 16"]
    gate_up_scales: UInt8[Tensor, "expert gate_up block"]
    gate_up_bias: Float[Tensor, "expert gate_up"]
    down_blocks: UInt8[Tensor, "expert d_model block 16"]
    down_scales: UInt8[Tensor, "expert d_model block"]
    down_bias: Float[Tensor, "expert d_model"]


def as_stored(experts: Experts) -> Experts:
    """The checkpoint's own order serves as it is."""
    return experts


class ExpertTap(NamedTuple):
    """Where a caller may look into `moe`; None costs nothing. All are [batch, pos, k, ...]."""

    gate: Look | None = None
    """d_ff, float32, before the clamp"""
    up: Look | None = None
    """d_ff, float32, before the clamp"""
    post: Look | None = None
    """d_ff, dtype of x: the expert's neurons"""
    out: Look | None = None
    """d_model, float32, not yet weighed"""


class _Plan(NamedTuple):
    """Rows of (token, slot) pairs sorted by expert, and back."""

    shape: torch.Size
    experts: list[int]
    """experts that have rows"""
    counts: list[int]
    order: Tensor
    """[row] flat (token, slot) index of each sorted row"""
    inverse: Tensor
    """[token · k] sorted row of each (token, slot)"""


def moe(
    x: Float[Tensor, "batch pos d_model"],
    indices: Int[Tensor, "batch pos k"],
    weights: Float[Tensor, "batch pos k"],
    experts: Experts,
    *,
    limit: float = 7.0,
    tap: ExpertTap | None = None,
) -> Float[Tensor, "batch pos d_model"]:
    """Send each token through its experts and sum by weight; same dtype as `x`."""
    tap = tap or ExpertTap()
    plan = _sort(indices)
    token = torch.div(plan.order, indices.shape[-1], rounding_mode="floor")
    rows = list(x.flatten(0, 1)[token].split(plan.counts))
    if tap.gate or tap.up:
        halves = [_up(e, row, experts) for e, row in zip(plan.experts, rows, strict=True)]
        gates = _through(tap.gate, [gate for gate, _ in halves], plan)
        ups = _through(tap.up, [up for _, up in halves], plan)
        posts = [swiglu(g, u, limit).to(x.dtype) for g, u in zip(gates, ups, strict=True)]
    else:
        posts = [
            swiglu(*_up(e, row, experts), limit).to(x.dtype)
            for e, row in zip(plan.experts, rows, strict=True)
        ]
    posts = _through(tap.post, posts, plan)
    outs = [_down(e, post, experts) for e, post in zip(plan.experts, posts, strict=True)]
    slots = _slots(outs, plan)
    if tap.out:
        slots = tap.out(slots)
    return (slots * weights.float()[..., None]).sum(2).to(x.dtype)


def _sort(indices: Tensor) -> _Plan:
    flat = indices.flatten()
    order = torch.argsort(flat, stable=True)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.numel(), device=order.device)
    experts, counts = torch.unique_consecutive(flat[order], return_counts=True)
    return _Plan(indices.shape, experts.tolist(), counts.tolist(), order, inverse)


def _up(expert: int, x: Tensor, weights: Experts) -> tuple[Tensor, Tensor]:
    u = packed_linear(x, weights.gate_up_blocks[expert], weights.gate_up_scales[expert])
    u = u + weights.gate_up_bias[expert].float()
    return u[:, 0::2].contiguous(), u[:, 1::2].contiguous()


def _down(expert: int, post: Tensor, weights: Experts) -> Tensor:
    y = packed_linear(post, weights.down_blocks[expert], weights.down_scales[expert])
    return y + weights.down_bias[expert].float()


def _slots(parts: list[Tensor], plan: _Plan) -> Tensor:
    return torch.cat(parts)[plan.inverse].view(*plan.shape, -1)  # [batch, pos, k, ...]


def _through(look: Look | None, parts: list[Tensor], plan: _Plan) -> list[Tensor]:
    """Show sorted rows to a tap in slot order, and sort what it returns again: an exact copy."""
    if look is None:
        return parts
    seen = look(_slots(parts, plan))
    return list(seen.flatten(0, 2)[plan.order].split(plan.counts))
