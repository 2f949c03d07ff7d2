"""The mixture of experts in Triton; formulas and taps are those of `gptoss_kernels.moe`.

Two kernels read packed weights: one ends in SwiGLU, the other in each slot's output, which a third
sums in rank order. A tap on gate or up takes SwiGLU out of the first one: the same arithmetic, the
same bits. Every stage keeps the order of slots, so a tap sees what was written, without a copy.
Edits are tensors, read where a kernel ends.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gptoss_kernels.moe import Experts, ExpertTap
from gptoss_kernels.triton.linear import check
from gptoss_kernels.triton.moe_gradient import Combine, Down, GateUp, Swiglu, Whole
from gptoss_kernels.triton.moe_stages import ExpertEdits, combine, down, prepare, up
from gptoss_kernels.triton.repack import PackedExperts, pack_for_triton

__all__ = ["ExpertEdits", "PackedExperts", "moe", "pack_for_triton"]


def moe(
    x: Float[Tensor, "batch pos d_model"],
    indices: Int[Tensor, "batch pos k"],
    weights: Float[Tensor, "batch pos k"],
    experts: Experts | PackedExperts,
    *,
    limit: float = 7.0,
    tap: ExpertTap | None = None,
    edits: ExpertEdits | None = None,
) -> Float[Tensor, "batch pos d_model"]:
    """Send each token through its experts and sum by weight; same dtype as `x`.

    `experts` as they lie in the checkpoint are packed anew in every call: a model does that once,
    with `pack_for_triton`.
    """
    packed = experts if isinstance(experts, PackedExperts) else pack_for_triton(experts)
    tap, edits = tap or ExpertTap(), edits or ExpertEdits()
    _check(x, indices, weights, packed, edits)
    call, gain = prepare(x, indices, packed, limit, edits), edits.slot_gain
    graph = torch.is_grad_enabled() and any(
        each is not None and each.requires_grad for each in (x, weights, gain)
    )
    if not any(tap) and not graph:
        return combine(_gained(down(up(x, call), call), gain), weights, x.dtype)
    if not any(tap) and gain is None:
        return Whole.apply(x, weights, call)  # pyright: ignore[reportReturnType]
    if tap.gate or tap.up or graph:
        gate, high = GateUp.apply(x, call)  # pyright: ignore
        gate = tap.gate(gate) if tap.gate else gate
        high = tap.up(high) if tap.up else high
        post = Swiglu.apply(gate, high, call)
        del gate, high  # what nobody kept is not in the way of what follows
    else:
        post = up(x, call)
    post = tap.post(post) if tap.post else post  # pyright: ignore
    out = _gained(Down.apply(post, call), gain)  # pyright: ignore[reportArgumentType]
    out = tap.out(out) if tap.out else out
    return Combine.apply(out, weights, x.dtype)  # pyright: ignore[reportReturnType]


def _gained(out: Tensor, gain: Tensor | None) -> Tensor:
    """What slots write, times a number each: the bits of a tap that multiplies."""
    return out if gain is None else out * gain.float()[..., None]


def _check(x: Tensor, indices: Tensor, weights: Tensor, experts: PackedExperts, edits) -> None:
    check("moe", x=x, weights=weights)
    if x.shape[-1] != experts.d_model:
        raise ValueError(f"moe: x ends in {x.shape[-1]}, the experts map {experts.d_model}")
    if indices.shape != weights.shape or indices.shape[:-1] != x.shape[:-1]:
        raise ValueError(
            f"moe: expected indices and weights {tuple(x.shape[:-1])} + (k,); "
            f"got {tuple(indices.shape)} and {tuple(weights.shape)}"
        )
    wanted = {
        "slot_gain": tuple(indices.shape),
        "neuron_gain": (len(experts.down_bias), experts.d_ff),
        "post_row": tuple(indices.shape),
    }
    for name, shape in wanted.items():
        each = getattr(edits, name)
        if each is not None and each.shape != shape:
            raise ValueError(f"moe: expected {name} {shape}; got {tuple(each.shape)}")
    table = edits.post_table
    if (edits.post_row is None) != (table is None):
        raise ValueError("moe: post_row and post_table come together")
    if table is not None and table.shape[1:] != (experts.d_ff,):
        raise ValueError(f"moe: expected post_table (row, {experts.d_ff}); got {table.shape}")
    for name in ("neuron_gain", "post_table"):
        each = getattr(edits, name)
        if each is not None and each.requires_grad:
            raise ValueError(f"moe: {name} takes no gradient; change post by a tap instead")
