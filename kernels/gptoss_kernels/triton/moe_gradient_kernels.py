"""Kernels of the mixture's backward pass; what they compute stands in `moe_gradient`."""

import triton
import triton.language as tl

from gptoss_kernels.triton.decode import decode
from gptoss_kernels.triton.moe_kernels import SLOPE, edited, swiglu
from gptoss_kernels.triton.sort import rows_of


@triton.jit
def rows_gradient_kernel(
    grad_ptr, plane, codes_ptr, scales_ptr, table_ptr, order_ptr, tiles, slots, per, outer, inner,
    to_ptr, METHOD: tl.constexpr, SMALL: tl.constexpr, TERMS: tl.constexpr, MOST: tl.constexpr,
    ROWS: tl.constexpr, STEP: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """One group of inputs of one tile of slots: Σ over packed rows of weight · grad."""
    groups = tl.cdiv(inner, 128)
    tile, group = tl.program_id(0) // groups, (tl.program_id(0) % groups).to(tl.int64)
    expert, slot, real = rows_of(table_ptr, order_ptr, tile, tiles, slots, ROWS, MOST)
    if expert < 0:
        return
    n, i = tl.arange(0, STEP), tl.arange(0, 16)
    first = (expert.to(tl.int64) * groups + group) * outer
    code_ptr = codes_ptr + (first + n)[:, None] * 16 + i[None, :]
    scale_ptr = scales_ptr + first + n
    grad_at = grad_ptr + (slot // per)[:, None] * outer + n[None, :]
    plane = tl.cast(plane, tl.int64)  # twice it may exceed 32 bits
    total = tl.zeros([128, ROWS], tl.float32)
    for start in range(0, outer, STEP):
        inside = (n < STEP) if EVEN else (start + n < outer)
        if EVEN:
            word, scale = tl.load(code_ptr), tl.load(scale_ptr)
        else:
            word = tl.load(code_ptr, mask=inside[:, None], other=0)
            scale = tl.load(scale_ptr, mask=inside, other=0)
        a, b, c, d = decode(word, scale, METHOD, SMALL)
        weight = tl.join(tl.join(a, c), tl.join(b, d)).reshape(STEP, 128)  # the block is fastest
        for term in tl.static_range(TERMS):  # pyright: ignore
            grad = tl.load(grad_at + term * plane, mask=inside[None, :], other=0.0)
            total = tl.dot(weight.T, grad.T, total)
        code_ptr += STEP * 16
        scale_ptr += STEP
        grad_at += STEP
    q = tl.arange(0, 128)
    k = group * 128 + 32 * (q % 4) + q // 4
    at = slot[None, :] * inner + k[:, None]
    tl.store(to_ptr + at, total, mask=real[None, :] & (k < inner)[:, None])


@triton.jit
def swiglu_gradient_kernel(
    grad_ptr, gate_ptr, up_ptr, indices_ptr, weights_ptr, to_y_ptr, bias_ptr, k, d_model, d_ff,
    limit, gain_ptr, pick_ptr, rows_ptr, to_gate_ptr, to_up_ptr, to_weights_ptr,
    NARROW: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """One slot. With weights, grad is W2ᵀ to_y, and the slot's weight has a gradient too."""
    slot = tl.program_id(0).to(tl.int64)
    expert = tl.load(indices_ptr + slot).to(tl.int64)
    along = tl.zeros([COLS], tl.float32)
    for start in range(0, d_ff, COLS):
        f = start + tl.arange(0, COLS)
        real = f < d_ff
        gate = tl.load(gate_ptr + slot * d_ff + f, mask=real, other=0.0)
        up = tl.load(up_ptr + slot * d_ff + f, mask=real, other=0.0)
        grad = tl.load(grad_ptr + slot * d_ff + f, mask=real, other=0.0).to(tl.float32)
        if weights_ptr is not None:
            post = swiglu(gate, up, limit)
            post = edited(post, gain_ptr, pick_ptr, rows_ptr, expert, slot, f, real, d_ff)
            if NARROW:
                post = post.to(tl.bfloat16).to(tl.float32)
            along += grad * post
            grad = grad * tl.load(weights_ptr + slot).to(tl.float32)
        if gain_ptr is not None:
            grad = grad * tl.load(gain_ptr + expert * d_ff + f, mask=real, other=1.0)
        if pick_ptr is not None:
            replaced = tl.load(pick_ptr + slot).to(tl.int64) * d_ff + f >= 0
            grad = tl.where(replaced, 0.0, grad)
        low, high = tl.minimum(gate, limit), tl.maximum(tl.minimum(up, limit), -limit)
        part = tl.sigmoid(low * SLOPE)
        slope = part * (1 + low * SLOPE * (1 - part))
        to_gate = tl.where(gate <= limit, grad * slope * (high + 1), 0.0)
        to_up = tl.where((up <= limit) & (up >= -limit), grad * low * part, 0.0)
        tl.store(to_gate_ptr + slot * d_ff + f, to_gate, mask=real)
        tl.store(to_up_ptr + slot * d_ff + f, to_up, mask=real)
    if weights_ptr is not None:
        for start in range(0, d_model, COLS):
            n = start + tl.arange(0, COLS)
            bias = tl.load(bias_ptr + expert * d_model + n, mask=n < d_model, other=0.0)
            at = to_y_ptr + (slot // k) * d_model + n
            along += tl.load(at, mask=n < d_model, other=0.0).to(tl.float32) * bias.to(tl.float32)
        tl.store(to_weights_ptr + slot, tl.sum(along, 0))
