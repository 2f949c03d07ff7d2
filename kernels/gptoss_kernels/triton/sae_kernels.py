"""Pre-activations that exist only in registers, and sparse sums over rows of a decoder.

Encoders read a stretch of latents for a tile of rows. Top-k keeps the k largest of the stretch as
integers of value and latent, of which the caller takes the k largest. Above counts in a first
reading and writes in a second, at places that follow from the counts: nothing is added atomically.
"""

import triton
import triton.language as tl

from gptoss_kernels.triton.lens_kernels import keep_largest
from gptoss_kernels.triton.linear_kernels import YES, piece
from gptoss_kernels.triton.route import order


@triton.jit
def pre_activations(
    x_at, w_ptr, bias_ptr, n, latents, inner, term,
    TERMS: tl.constexpr, EVEN: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """[latent, row] of one tile of latents."""
    w_at = w_ptr + (tl.minimum(n, latents - 1).to(tl.int64) * inner)[:, None]
    pre = piece(x_at, w_at, n < latents, 0, inner, term, 1, TERMS, EVEN, YES, BM, BN, BK)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + n, mask=n < latents, other=0.0)
        pre += bias.to(tl.float32)[:, None]
    return pre


@triton.jit(do_not_specialize=("rows",))
def topk_kernel(
    x_ptr, w_ptr, bias_ptr, keys_ptr, rows, latents, inner, k, stretch,
    TERMS: tl.constexpr, EVEN: tl.constexpr, KEPT: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """keys [row, stretch, k]: the k largest of each stretch, as `order` ranks them."""
    m = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    x_at, slot = x_ptr + (tl.minimum(m, rows - 1) * inner)[None, :], tl.arange(0, KEPT)[:, None]
    values = tl.where(slot < k, float("-inf"), float("inf")) + tl.zeros([KEPT, BM], tl.float32)
    tokens = -1 - slot + tl.zeros([KEPT, BM], tl.int32)
    begin = tl.program_id(1) * stretch
    for start in range(begin, tl.minimum(begin + stretch, latents), BN):
        n = start + tl.arange(0, BN)
        pre = pre_activations(x_at, w_ptr, bias_ptr, n, latents, inner, rows.to(tl.int64) * inner,
                              TERMS, EVEN, BM, BN, BK)  # fmt: skip
        values, tokens = keep_largest(pre, n, n < latents, values, tokens)
    keys = order(values, tl.maximum(tokens, 0), 2147483647)
    keys = tl.where(tokens < 0, tl.full([KEPT, BM], -0x7FFFFFFFFFFFFFFF, tl.int64), keys)
    at = (m * tl.num_programs(1) + tl.program_id(1))[None, :] * k + slot
    tl.store(keys_ptr + at, keys, mask=(m < rows)[None, :] & (slot < k))


@triton.jit(do_not_specialize=("rows", "slots"))
def above_kernel(
    x_ptr, w_ptr, bias_ptr, threshold_ptr, places_ptr, indices_ptr, values_ptr,
    rows, latents, inner, slots, stretch,
    TERMS: tl.constexpr, EVEN: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """places [stretch, row]: how many are on, or, with `indices_ptr`, where the first goes."""
    m = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    x_at = x_ptr + (tl.minimum(m, rows - 1) * inner)[None, :]
    places_at = places_ptr + tl.program_id(1).to(tl.int64) * rows + m
    place = tl.zeros([BM], tl.int32)
    if indices_ptr is not None:
        place = tl.load(places_at, mask=m < rows, other=0)
    begin = tl.program_id(1) * stretch
    for start in range(begin, tl.minimum(begin + stretch, latents), BN):
        n = start + tl.arange(0, BN)
        pre = pre_activations(x_at, w_ptr, bias_ptr, n, latents, inner, rows.to(tl.int64) * inner,
                              TERMS, EVEN, BM, BN, BK)  # fmt: skip
        limit = tl.load(threshold_ptr + n, mask=n < latents, other=float("inf"))[:, None]
        on = tl.where((pre > limit) & (m < rows)[None, :], 1.0, 0.0)
        if indices_ptr is not None:
            nth = place[None, :] + tl.cumsum(on, 0).to(tl.int32) - 1
            at, here = m[None, :] * slots + nth, (on > 0) & (nth < slots)
            latent = n[:, None] + tl.zeros([BN, BM], tl.int32)
            tl.store(indices_ptr + at, latent.to(tl.int64), mask=here)
            tl.store(values_ptr + at, pre, mask=here)
        place += tl.sum(on, 0).to(tl.int32)
    if indices_ptr is None:
        tl.store(places_at, place, mask=m < rows)


@triton.jit(do_not_specialize=("slots",))
def decode_kernel(
    indices_ptr, values_ptr, w_ptr, bias_ptr, y_ptr, slots, d_model, BLOCK: tl.constexpr
):
    """One stretch of one row: Σ value · W_dec[latent], then the bias."""
    row, i = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for slot in range(slots):
        latent = tl.load(indices_ptr + row * slots + slot).to(tl.int64)
        value = tl.load(values_ptr + row * slots + slot).to(tl.float32)
        read = i < tl.where(latent >= 0, d_model, 0)
        w = tl.load(w_ptr + tl.maximum(latent, 0) * d_model + i, mask=read, other=0.0)
        total = tl.where(latent >= 0, total + value * w.to(tl.float32), total)
    if bias_ptr is not None:
        total += tl.load(bias_ptr + i, mask=i < d_model, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * d_model + i, total.to(y_ptr.dtype.element_ty), mask=i < d_model)


@triton.jit(do_not_specialize=("slots",))
def values_gradient_kernel(
    indices_ptr, grad_ptr, w_ptr, to_values_ptr, slots, d_model, BLOCK: tl.constexpr
):
    """One slot: W_dec[latent] · grad of its row."""
    at = tl.program_id(0).to(tl.int64)
    latent, i = tl.load(indices_ptr + at).to(tl.int64), tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, d_model, BLOCK):
        read = start + i < tl.where(latent >= 0, d_model, 0)
        w = tl.load(w_ptr + tl.maximum(latent, 0) * d_model + start + i, mask=read, other=0.0)
        grad = tl.load(grad_ptr + at // slots * d_model + start + i, mask=read, other=0.0)
        total += w.to(tl.float32) * grad.to(tl.float32)
    tl.store(to_values_ptr + at, tl.sum(total, 0))


@triton.jit(do_not_specialize=("slots",))
def decoder_gradient_kernel(
    order_ptr, first_ptr, values_ptr, grad_ptr, rows_ptr, slots, d_model, BLOCK: tl.constexpr
):
    """One latent: Σ value · grad over the slots that read it, in their order."""
    latent, i = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for nth in range(tl.load(first_ptr + latent), tl.load(first_ptr + latent + 1)):
        at = tl.load(order_ptr + nth)
        grad = tl.load(grad_ptr + at // slots * d_model + i, mask=i < d_model, other=0.0)
        total += tl.load(values_ptr + at).to(tl.float32) * grad.to(tl.float32)
    tl.store(rows_ptr + latent * d_model + i, total, mask=i < d_model)
