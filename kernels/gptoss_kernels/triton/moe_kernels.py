"""The kernels of the mixture's forward pass; what they compute stands in `gptoss_kernels.moe`.

Packed rows are the first operand of every product, [row, input] · [input, slot]: the kind of
product and the order of the sum over inputs are the same for one slot and for thousands.
"""

import triton
import triton.language as tl

from gptoss_kernels.swiglu import ALPHA
from gptoss_kernels.triton.decode import decode
from gptoss_kernels.triton.sort import rows_of

SLOPE = tl.constexpr(ALPHA)


@triton.jit
def packed_product(
    codes_ptr, scales_ptr, x_ptr, row, expert, n, outer, inner, plane,
    METHOD: tl.constexpr, SMALL: tl.constexpr, TERMS: tl.constexpr, ROWS: tl.constexpr,
    COLS: tl.constexpr,
):  # fmt: skip
    """[COLS, ROWS] float32: packed rows `n` of an expert times rows `row` of x.

    x is TERMS bfloat16 matrices, `plane` apart, that add up to the activations.
    """
    i, c = tl.arange(0, 16), tl.arange(0, 32)
    first = expert.to(tl.int64) * tl.cdiv(inner, 128) * outer
    code_ptr = codes_ptr + (first + n)[:, None] * 16 + i[None, :]
    scale_ptr = scales_ptr + first + n
    x_at = x_ptr + row[:, None] * inner + c[None, :]
    plane = tl.cast(plane, tl.int64)  # twice it may exceed 32 bits
    total = tl.zeros([COLS, ROWS], tl.float32)
    for k in range(0, inner, 128):
        word = tl.load(code_ptr)
        scale = tl.load(scale_ptr)
        blocks = decode(word, scale, METHOD, SMALL)
        for j in tl.static_range(4):  # pyright: ignore
            for term in tl.static_range(TERMS):  # pyright: ignore
                real = (c < inner - k - 32 * j)[None, :]
                x = tl.load(x_at + 32 * j + term * plane, mask=real, other=0.0)
                total = tl.dot(blocks[j], x.T, total)
        code_ptr += outer * 16
        scale_ptr += outer
        x_at += 128
    return total


@triton.jit
def swiglu(gate, up, limit):
    """Float32 in and out; NaN stays NaN."""
    gate = tl.minimum(gate, limit, propagate_nan=tl.PropagateNan.ALL)
    up = tl.minimum(up, limit, propagate_nan=tl.PropagateNan.ALL)
    up = tl.maximum(up, -limit, propagate_nan=tl.PropagateNan.ALL)
    return gate * tl.sigmoid(gate * SLOPE) * (up + 1)


@triton.jit
def edited(post, gain_ptr, pick_ptr, table_ptr, expert, slot, f, real, d_ff):
    """Neurons of slots under the edits that are there; [f, slot] or broadcast to it."""
    if gain_ptr is not None:
        at = expert.to(tl.int64) * d_ff + f
        post = post * tl.load(gain_ptr + at, mask=f < d_ff, other=1.0)
    if pick_ptr is not None:
        at = tl.load(pick_ptr + slot).to(tl.int64) * d_ff + f  # negative for row -1
        chosen = real & (at >= 0)
        row = tl.load(table_ptr + at, mask=chosen, other=0.0)
        post = tl.where(chosen, row.to(tl.float32), post)
    return post


@triton.jit
def up_kernel(
    x_ptr, plane, codes_ptr, scales_ptr, bias_ptr, table_ptr, order_ptr, tiles, slots, k,
    d_model, d_ff, limit, gain_ptr, pick_ptr, rows_ptr, gate_ptr, up_ptr, post_ptr,
    METHOD: tl.constexpr, SMALL: tl.constexpr, TERMS: tl.constexpr, MOST: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Gate, up and post of one tile of slots; stores those that are asked for."""
    wide = tl.cdiv(2 * d_ff, COLS)
    tile, part = tl.program_id(0) // wide, (tl.program_id(0) % wide).to(tl.int64)
    expert, slot, real = rows_of(table_ptr, order_ptr, tile, tiles, slots, ROWS, MOST)
    if expert < 0:
        return
    n = tl.minimum(part * COLS + tl.arange(0, COLS), 2 * d_ff - 1)
    u = packed_product(
        codes_ptr, scales_ptr, x_ptr, slot // k, expert, n, 2 * d_ff, d_model, plane,
        METHOD, SMALL, TERMS, ROWS, COLS,
    )  # fmt: skip
    turns = u.reshape(COLS // 16, 2, 8, ROWS).permute(0, 2, 3, 1)  # eight gates, eight ups
    gate, up = turns.split()
    gate, up = gate.reshape(COLS // 2, ROWS), up.reshape(COLS // 2, ROWS)
    f = part * (COLS // 2) + tl.arange(0, COLS // 2)
    bias = bias_ptr + expert.to(tl.int64) * 2 * d_ff + 2 * f
    gate += tl.load(bias, mask=f < d_ff, other=0.0).to(tl.float32)[:, None]
    up += tl.load(bias + 1, mask=f < d_ff, other=0.0).to(tl.float32)[:, None]
    at = slot[None, :] * d_ff + f[:, None]
    mask = real[None, :] & (f < d_ff)[:, None]
    if gate_ptr is not None:
        tl.store(gate_ptr + at, gate, mask=mask)
        tl.store(up_ptr + at, up, mask=mask)
    if post_ptr is not None:
        post = swiglu(gate, up, limit)
        post = edited(
            post, gain_ptr, pick_ptr, rows_ptr, expert, slot[None, :], f[:, None], mask, d_ff
        )
        tl.store(post_ptr + at, post.to(post_ptr.dtype.element_ty), mask=mask)


@triton.jit
def swiglu_kernel(
    gate_ptr, up_ptr, indices_ptr, d_ff, limit, gain_ptr, pick_ptr, rows_ptr, post_ptr,
    COLS: tl.constexpr,
):  # fmt: skip
    """The end of `up_kernel`, on what a tap gave back: one slot, COLS neurons."""
    slot = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * COLS + tl.arange(0, COLS)
    real = f < d_ff
    gate = tl.load(gate_ptr + slot * d_ff + f, mask=real, other=0.0)
    up = tl.load(up_ptr + slot * d_ff + f, mask=real, other=0.0)
    expert = tl.load(indices_ptr + slot)
    post = swiglu(gate, up, limit)
    post = edited(post, gain_ptr, pick_ptr, rows_ptr, expert, slot, f, real, d_ff)
    tl.store(post_ptr + slot * d_ff + f, post.to(post_ptr.dtype.element_ty), mask=real)


@triton.jit
def down_kernel(
    x_ptr, plane, codes_ptr, scales_ptr, bias_ptr, table_ptr, order_ptr, tiles, slots,
    d_ff, d_model, out_ptr,
    METHOD: tl.constexpr, SMALL: tl.constexpr, TERMS: tl.constexpr, MOST: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """What each slot's expert writes, not yet weighed, in float32."""
    wide = tl.cdiv(d_model, COLS)
    tile, part = tl.program_id(0) // wide, (tl.program_id(0) % wide).to(tl.int64)
    expert, slot, real = rows_of(table_ptr, order_ptr, tile, tiles, slots, ROWS, MOST)
    if expert < 0:
        return
    n = part * COLS + tl.arange(0, COLS)
    y = packed_product(
        codes_ptr, scales_ptr, x_ptr, slot, expert, tl.minimum(n, d_model - 1), d_model, d_ff,
        plane, METHOD, SMALL, TERMS, ROWS, COLS,
    )  # fmt: skip
    bias = tl.load(bias_ptr + expert.to(tl.int64) * d_model + n, mask=n < d_model, other=0.0)
    y += bias.to(tl.float32)[:, None]
    at = slot[None, :] * d_model + n[:, None]
    tl.store(out_ptr + at, y, mask=real[None, :] & (n < d_model)[:, None])


@triton.jit
def combine_kernel(out_ptr, weights_ptr, y_ptr, k, d_model, COLS: tl.constexpr):
    """Slots summed by weight in rank order, rounded once; without weights a plain sum."""
    token = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * COLS + tl.arange(0, COLS)
    total = tl.zeros([COLS], tl.float32)
    for j in range(k):
        slot = token * k + j
        out = tl.load(out_ptr + slot * d_model + n, mask=n < d_model, other=0.0)
        if weights_ptr is not None:
            out = out * tl.load(weights_ptr + slot).to(tl.float32)
        total += out
    tl.store(y_ptr + token * d_model + n, total.to(y_ptr.dtype.element_ty), mask=n < d_model)
