"""The stages of the mixture, each a kernel; see `moe` for how they follow each other."""

from typing import NamedTuple

import torch
import triton
from jaxtyping import Float, Int
from torch import Tensor

from gptoss_kernels.triton.decode import method
from gptoss_kernels.triton.launch import launch
from gptoss_kernels.triton.linear import options, terms
from gptoss_kernels.triton.moe_kernels import (
    combine_kernel,
    down_kernel,
    swiglu_kernel,
    up_kernel,
)
from gptoss_kernels.triton.repack import PackedExperts
from gptoss_kernels.triton.sort import FEW, Plan, plan_rows
from gptoss_kernels.triton.tiles import Tile, architecture, tile


class ExpertEdits(NamedTuple):
    """Interventions as data; None costs nothing. What they leave alone keeps its bits."""

    slot_gain: Float[Tensor, "batch pos k"] | None = None
    """what the expert of a slot writes is multiplied by it"""
    neuron_gain: Float[Tensor, "expert d_ff"] | None = None
    """post is multiplied by it, before it is rounded"""
    post_row: Int[Tensor, "batch pos k"] | None = None
    """row of `post_table` that replaces the post of a slot, or -1"""
    post_table: Float[Tensor, "row d_ff"] | None = None


class Call(NamedTuple):
    """What all stages of one call share."""

    indices: Int[Tensor, "batch pos k"]
    experts: PackedExperts
    limit: float
    edits: ExpertEdits
    plan: Plan
    sizes: Tile
    dtype: torch.dtype
    """of the activations"""


def prepare(
    x: Tensor, indices: Tensor, experts: PackedExperts, limit: float, edits: ExpertEdits
) -> Call:
    """Sort the slots; every kernel of a call uses the same tiles."""
    count = len(experts.down_bias)
    name = "moe" if x.dtype == torch.bfloat16 else "moe_float32"
    sizes = tile(name, triton.cdiv(indices.numel(), count), x.device)
    indices = indices.contiguous()
    gain, row, table = edits.neuron_gain, edits.post_row, edits.post_table
    edits = ExpertEdits(
        None,
        None if gain is None else gain.float().contiguous(),
        None if row is None else row.contiguous(),
        None if table is None else table.contiguous(),
    )
    plan = plan_rows(indices, count, sizes.rows)
    return Call(indices, experts, limit, edits, plan, sizes, x.dtype)


def constants(call: Call, split: Tensor) -> dict:
    """How weights are decoded, in tiles of which size."""
    form, small = call.experts.form, call.experts.small
    return {
        "METHOD": method(form, architecture(split.device)),
        "SMALL": small,
        "TERMS": len(split),
        "MOST": FEW,
        "ROWS": call.sizes.rows,
        "COLS": call.sizes.cols,
    } | options(call.sizes, split.device)


def plane(split: Tensor) -> int:
    """How far the terms of the activations are apart."""
    return split.stride(0) if len(split) > 1 else 0


def up(x: Tensor, call: Call) -> Float[Tensor, "batch pos k d_ff"]:
    """Gate, up and SwiGLU in one kernel."""
    post = x.new_empty((*call.indices.shape, call.experts.d_ff), dtype=call.dtype)
    _start_up(x, call, None, None, post)
    return post


def gate_up(x: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    """Both halves in float32, before the clamp: [batch, pos, k, d_ff]."""
    gate = x.new_empty((*call.indices.shape, call.experts.d_ff), dtype=torch.float32)
    high = torch.empty_like(gate)
    _start_up(x, call, gate, high, None)
    return gate, high


def _start_up(
    x: Tensor, call: Call, gate: Tensor | None, high: Tensor | None, post: Tensor | None
) -> None:
    split, plan, experts, edits = terms(x), call.plan, call.experts, call.edits
    grid = (plan.tiles * triton.cdiv(2 * experts.d_ff, call.sizes.cols),)
    launch(
        up_kernel, grid, split, plane(split), *experts[:3],
        plan.table, plan.order, plan.tiles, plan.slots, call.indices.shape[-1],
        experts.d_model, experts.d_ff, call.limit, edits.neuron_gain, edits.post_row,
        edits.post_table, gate, high, post, **constants(call, split),
    )  # fmt: skip


def swiglu(gate: Tensor, high: Tensor, call: Call) -> Float[Tensor, "batch pos k d_ff"]:
    """The end of `up` on halves from outside, edits included."""
    post = torch.empty_like(gate, dtype=call.dtype)
    d_ff, edits = call.experts.d_ff, call.edits
    launch(swiglu_kernel, (call.plan.slots, triton.cdiv(d_ff, 1024)), gate, high, call.indices,
           d_ff, call.limit, edits.neuron_gain, edits.post_row, edits.post_table, post, COLS=1024,
           num_warps=4)  # fmt: skip
    return post


def down(post: Tensor, call: Call) -> Float[Tensor, "batch pos k d_model"]:
    """What each slot's expert writes, in float32."""
    split, plan, experts = terms(post), call.plan, call.experts
    out = post.new_empty((*call.indices.shape, experts.d_model), dtype=torch.float32)
    grid = (plan.tiles * triton.cdiv(experts.d_model, call.sizes.cols),)
    launch(
        down_kernel, grid, split, plane(split), *experts[3:6],
        plan.table, plan.order, plan.tiles, plan.slots, experts.d_ff, experts.d_model, out,
        **constants(call, split),
    )  # fmt: skip
    return out


def combine(out: Tensor, weights: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Slots summed by weight, or as they are: [batch, pos, d_model]."""
    batch, pos, k, d_model = out.shape
    y = out.new_empty((batch, pos, d_model), dtype=dtype)
    weights = None if weights is None else weights.contiguous()
    launch(combine_kernel, (batch * pos, triton.cdiv(d_model, 1024)), out, weights, y, k, d_model,
           COLS=1024, num_warps=4)  # fmt: skip
    return y
