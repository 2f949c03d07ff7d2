"""Gradients of the mixture to activations and routing weights, through the packed weights.

    to post    = weight · W2ᵀ grad                 to weight = <W2ᵀ grad, post> + <grad, b2>
    to gate/up = SwiGLU's slope                    to x      = Σ_slot W1ᵀ (to gate, to up)

Whole, the mixture keeps its input alone and computes gate and up again; taken apart by a tap, each
stage has a gradient of its own.
"""

import torch
import triton
from torch import Tensor

from gptoss_kernels.triton.launch import launch
from gptoss_kernels.triton.linear import options, terms
from gptoss_kernels.triton.moe_gradient_kernels import rows_gradient_kernel, swiglu_gradient_kernel
from gptoss_kernels.triton.moe_stages import (
    Call,
    combine,
    constants,
    down,
    gate_up,
    plane,
    swiglu,
    up,
)
from gptoss_kernels.triton.repack import TURN
from gptoss_kernels.triton.sort import plan_rows
from gptoss_kernels.triton.tiles import tile


class Whole(torch.autograd.Function):
    """The mixture with nobody looking."""

    @staticmethod
    def forward(ctx, x: Tensor, weights: Tensor, call: Call) -> Tensor:
        ctx.save_for_backward(x, weights)
        ctx.call = call
        return combine(down(up(x, call), call), weights, x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        (x, weights), call = ctx.saved_tensors, ctx.call
        grad = grad.contiguous()
        to_post = through_down(grad.to(call.dtype), call, call.indices.shape[-1])
        gate, high = gate_up(x, call)
        to_gate, to_up, to_weights = through_swiglu(to_post, gate, high, call, weights, grad)
        to_x = through_gate_up(to_gate, to_up, call) if ctx.needs_input_grad[0] else None
        assert to_weights is not None
        return to_x, to_weights.to(weights.dtype), None


class GateUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        ctx.call = call
        return gate_up(x, call)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, to_gate: Tensor, to_up: Tensor):  # pyright: ignore
        return through_gate_up(to_gate, to_up, ctx.call), None


class Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate: Tensor, high: Tensor, call: Call) -> Tensor:
        gate, high = gate.float().contiguous(), high.float().contiguous()
        ctx.save_for_backward(gate, high)
        ctx.call = call
        return swiglu(gate, high, call)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        gate, high = ctx.saved_tensors
        to_gate, to_up, _ = through_swiglu(grad.float(), gate, high, ctx.call)
        return to_gate, to_up, None


class Down(torch.autograd.Function):
    @staticmethod
    def forward(ctx, post: Tensor, call: Call) -> Tensor:
        ctx.dtype, ctx.call = post.dtype, call
        return down(post, call)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        return through_down(grad.to(ctx.call.dtype), ctx.call, 1).to(ctx.dtype), None


class Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, out: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(out, weights)
        return combine(out.float().contiguous(), weights, dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        out, weights = ctx.saved_tensors
        grad = grad.float()[:, :, None]  # [batch, pos, 1, d_model]
        to_out = (grad * weights.float()[..., None]).to(out.dtype)
        return to_out, (grad * out).sum(-1).to(weights.dtype), None


def through_gate_up(to_gate: Tensor, to_up: Tensor, call: Call) -> Tensor:
    """Gradient to x: [batch, pos, d_model], summed over slots."""
    halves = [each.to(call.dtype).unflatten(-1, (-1, TURN)) for each in (to_gate, to_up)]
    grad = torch.stack(halves, -2).flatten(-3)  # in the order of packed rows
    rows = _rows(grad, call, 1, call.experts.gate_up_codes, call.experts.gate_up_scales)
    return combine(rows[..., : call.experts.d_model], None, call.dtype)


def through_down(grad: Tensor, call: Call, per: int) -> Tensor:
    """W2ᵀ grad, not yet weighed: [batch, pos, k, d_ff]; `per` slots share a row of grad."""
    return _rows(grad, call, per, call.experts.down_codes, call.experts.down_scales)


def through_swiglu(
    grad: Tensor,
    gate: Tensor,
    high: Tensor,
    call: Call,
    weights: Tensor | None = None,
    to_y: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients to gate and up, and with `weights` (then grad is not yet weighed) to those."""
    to_gate, to_up = torch.empty_like(gate), torch.empty_like(gate)
    to_weights = None
    if weights is not None:
        weights = weights.contiguous()
        to_weights = torch.empty_like(weights, dtype=torch.float32)
    experts, edits = call.experts, call.edits
    launch(
        swiglu_gradient_kernel, (call.plan.slots,), grad.contiguous(), gate, high, call.indices,
        weights, to_y, experts.down_bias, call.indices.shape[-1], experts.d_model, experts.d_ff,
        call.limit, edits.neuron_gain, edits.post_row, edits.post_table, to_gate, to_up,
        to_weights, NARROW=call.dtype == torch.bfloat16, COLS=1024, num_warps=4,
    )  # fmt: skip
    return to_gate, to_up, to_weights


def _rows(grad: Tensor, call: Call, per: int, codes: Tensor, scales: Tensor) -> Tensor:
    """grad · W of each slot's expert, float32: [batch, pos, k, inner]."""
    count, groups, outer = scales.shape
    inner = call.experts.d_ff if codes is call.experts.down_codes else call.experts.d_model
    slots = call.indices.numel()
    sizes = tile("moe_gradient", triton.cdiv(slots, count), grad.device)
    plan = call.plan
    if sizes.rows != call.sizes.rows:
        plan = plan_rows(call.indices, count, sizes.rows)
    split = terms(grad)
    rows = grad.new_empty((*call.indices.shape, inner), dtype=torch.float32)
    given = constants(call, split) | options(sizes, grad.device) | {"ROWS": sizes.rows}
    del given["COLS"]
    launch(
        rows_gradient_kernel, (plan.tiles * groups,), split, plane(split), codes, scales,
        plan.table, plan.order, plan.tiles, plan.slots, per, outer, inner, rows,
        STEP=sizes.inner, EVEN=outer % sizes.inner == 0, **given,
    )  # fmt: skip
    return rows
