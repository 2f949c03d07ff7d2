"""Products with stored weights, summed in one order whatever the number of rows.

The weight is the first operand of every matrix instruction and the rows are its columns, so one row
and a thousand run the same instructions over the inputs in the same order. float32 is multiplied as
the sum of three bfloat16 terms, which together hold all its bits; products below 2⁻²⁴ are left out.
"""

import triton
import triton.language as tl

YES = tl.constexpr(True)
"""A constant of a kernel that is true; type checkers do not take True itself."""


@triton.jit
def parts(x):
    """float32 as the sum of three bfloat16 terms, largest first."""
    first = x.to(tl.bfloat16)
    rest = x - first.to(tl.float32)
    second = rest.to(tl.bfloat16)
    return first, second, (rest - second.to(tl.float32)).to(tl.bfloat16)


@triton.jit
def split_kernel(x_ptr, y_ptr, size, BLOCK: tl.constexpr):
    """The three terms of float32 `x`, one array behind the other."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    first, second, third = parts(tl.load(x_ptr + i, mask=i < size, other=0.0))
    tl.store(y_ptr + i, first, mask=i < size)
    tl.store(y_ptr + size + i, second, mask=i < size)
    tl.store(y_ptr + size + size + i, third, mask=i < size)  # 2 size may exceed 32 bits


@triton.jit
def product(w, x0, x1, x2, acc, TERMS: tl.constexpr):
    """acc + w · (x0 + x1 + x2) in float32, smallest products first."""
    if w.dtype == tl.bfloat16:
        if TERMS == 3:
            acc = tl.dot(w, x1, tl.dot(w, x2, acc))
        acc = tl.dot(w, x0, acc)
    else:
        w0, w1, w2 = parts(w)
        acc = tl.dot(w2, x0, acc)
        if TERMS == 3:
            acc = tl.dot(w0, x1, tl.dot(w1, x1, tl.dot(w0, x2, acc)))
        acc = tl.dot(w0, x0, tl.dot(w1, x0, acc))
    return acc


@triton.jit
def piece(
    x_at, w_at, real, first, last, term, w_step,
    TERMS: tl.constexpr, EVEN: tl.constexpr, ALONG: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Σ over inputs first .. last of w · x: [output, row].

    `x_at` [1, row] and `w_at` [output, 1] point to input 0; rows exist, and so do outputs, or those
    that do not are masked by `real` if neighbouring outputs lie side by side (not ALONG the
    inputs). With EVEN the piece is whole blocks. Terms of x are `term` apart.
    """
    i = tl.arange(0, BK)
    x_at += first + i[:, None]
    w_at += (first + i[None, :]).to(tl.int64) * w_step
    acc = tl.zeros([BN, BM], tl.float32)
    for k in range(first, last, BK):
        inside = k + i < last
        if EVEN and ALONG:
            w = tl.load(w_at)
        elif EVEN:
            w = tl.load(w_at, mask=real[:, None], other=0.0)
        else:
            w = tl.load(w_at, mask=real[:, None] & inside[None, :], other=0.0)
        x0 = tl.load(x_at) if EVEN else tl.load(x_at, mask=inside[:, None], other=0.0)
        x1, x2 = x0, x0
        if TERMS == 3:
            x1_at, x2_at = x_at + term, x_at + 2 * term
            x1 = tl.load(x1_at) if EVEN else tl.load(x1_at, mask=inside[:, None], other=0.0)
            x2 = tl.load(x2_at) if EVEN else tl.load(x2_at, mask=inside[:, None], other=0.0)
        acc = product(w, x0, x1, x2, acc, TERMS)
        x_at += BK
        w_at += BK * w_step
    return acc


@triton.jit
def place(rows, outer, BM: tl.constexpr, BN: tl.constexpr):
    """First row and first output of a program; eight row tiles share weights in the cache."""
    program, down, across = tl.program_id(0), tl.cdiv(rows, BM), tl.cdiv(outer, BN)
    above = program // (8 * across) * 8
    height, inside = tl.minimum(down - above, 8), program % (8 * across)
    return (above + inside % height).to(tl.int64) * BM, (inside // height).to(tl.int64) * BN


@triton.jit(do_not_specialize=("rows",))
def linear_kernel(
    x_ptr, w_ptr, bias_ptr, y_ptr, rows, outer, inner, length, w_row, w_step,
    APART: tl.constexpr, ONE: tl.constexpr, TERMS: tl.constexpr, EVEN: tl.constexpr,
    ALONG: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y[row, output]; with APART the sum of one piece of the inputs, y[piece, row, output].

    Pieces have `length` inputs; a program that does several adds them in their order, as
    `merge_kernel` does. ONE says that there is no more than one.
    """
    row, col = place(rows, outer, BM, BN)
    m, n, term = row + tl.arange(0, BM), col + tl.arange(0, BN), rows.to(tl.int64) * inner
    x_at = x_ptr + (tl.minimum(m, rows - 1) * inner)[None, :]
    exists = tl.minimum(n, outer - 1) if ALONG else n  # a minimum would scatter neighbours
    w_at = w_ptr + (exists * w_row)[:, None]
    if APART:
        first = tl.program_id(1) * length
        total = piece(x_at, w_at, n < outer, first, tl.minimum(first + length, inner), term, w_step,
                      TERMS, EVEN, ALONG, BM, BN, BK)  # fmt: skip
        y_ptr += tl.program_id(1).to(tl.int64) * rows * outer
    elif ONE:
        total = piece(x_at, w_at, n < outer, 0, inner, term, w_step,
                      TERMS, EVEN, ALONG, BM, BN, BK)  # fmt: skip
    else:
        total = tl.zeros([BN, BM], tl.float32)
        for first in range(0, inner, length):
            last = tl.minimum(first + length, inner)
            total += piece(x_at, w_at, n < outer, first, last, term, w_step,
                           TERMS, EVEN, ALONG, BM, BN, BK)  # fmt: skip
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + n, mask=n < outer, other=0.0)
        total += bias.to(tl.float32)[:, None]
    real = (m < rows)[None, :] & (n < outer)[:, None]
    y_at = y_ptr + m[None, :] * outer + n[:, None]
    tl.store(y_at, total.to(y_ptr.dtype.element_ty), mask=real)


@triton.jit
def merge_kernel(parts_ptr, bias_ptr, y_ptr, size, outer, pieces, BLOCK: tl.constexpr):
    """Sum the pieces of `size` results in order, add the bias, round once."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    at = parts_ptr + i
    for _ in range(pieces):
        total += tl.load(at, mask=i < size, other=0.0)
        at += size
    if bias_ptr is not None:
        total += tl.load(bias_ptr + i % outer, mask=i < size, other=0.0).to(tl.float32)
    tl.store(y_ptr + i, total.to(y_ptr.dtype.element_ty), mask=i < size)
