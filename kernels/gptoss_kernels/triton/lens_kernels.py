"""Logits that exist only in registers, and what is kept of them.

A program reads one stretch of the vocabulary, tile by tile, for one tile of columns, a column being
a layer's residual at a row. Of every tile it writes the maximum, sums relative to it, and how many
are ahead of the target: carried along they would take registers from the product. The k largest are
kept through the stretch. `merge_kernel` puts tiles and stretches together in order.

To compare with a final residual, the layers of a row and its final residual share a tile: GROUP
neighbouring columns are one row's, the last layer being the final residual.
"""

import triton
import triton.language as tl

from gptoss_kernels.triton.linear_kernels import YES, piece


@triton.jit
def most(x) -> tl.tensor:
    """The largest along axis 0; type checkers take what tl.max gives for a pair."""
    return tl.max(x, 0)  # pyright: ignore[reportReturnType]


@triton.jit
def least(x) -> tl.tensor:
    """The smallest along axis 0."""
    return tl.min(x, 0)  # pyright: ignore[reportReturnType]


@triton.jit
def residuals(layers, rows, GROUP: tl.constexpr, BM: tl.constexpr):
    """Which residual [layer, row] each column of a program is; columns past the end repeat one."""
    m = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    if GROUP > 1:
        layer, row = m % GROUP, m // GROUP
    else:
        layer, row = m // rows, m % rows
    return tl.minimum(layer, layers - 1) * rows + tl.minimum(row, rows - 1)


@triton.jit
def of_final(logits, layers, GROUP: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr):
    """[token, entry]: the logits of each entry's final residual."""
    grouped = tl.reshape(logits, [BN, BM // GROUP, GROUP])
    last = (tl.arange(0, GROUP) == layers - 1)[None, None, :]
    final = tl.sum(tl.where(last, grouped, 0.0), 2, keep_dims=True)
    return tl.reshape(tl.broadcast_to(final, [BN, BM // GROUP, GROUP]), [BN, BM])


@triton.jit
def put(sums_at, step, seen, worth, here):
    """Write a tile's maximum, Σ w and Σ w · worth with w = exp(seen - maximum)."""
    top = most(tl.where(here[:, None], seen, float("-inf")))
    weight = tl.where(here[:, None], tl.exp(seen - top[None, :]), 0.0)
    tl.store(sums_at, top)
    tl.store(sums_at + step, tl.sum(weight, 0))
    tl.store(sums_at + 2 * step, tl.sum(weight * worth, 0))


@triton.jit
def keep_largest(logits, n, here, values, tokens):
    """Put logits larger than the smallest kept in its place, the largest first.

    Of equal logits the lower token stays: tokens come in ascending order, and among the smallest
    kept the highest token goes first. Most tiles have nothing to put in.
    """
    left = tl.where(here[:, None], logits, float("-inf"))
    best, worst = most(left), least(values)
    while most((best > worst).to(tl.int32)) > 0:
        beats = best > worst
        token = least(tl.where(left == best[None, :], n[:, None], 2147483647))
        last = most(tl.where(values == worst[None, :], tokens, -2147483648))
        out = (values == worst[None, :]) & (tokens == last[None, :]) & beats[None, :]
        values = tl.where(out, best[None, :], values)
        tokens = tl.where(out, token[None, :], tokens)
        left = tl.where((n[:, None] == token[None, :]) & beats[None, :], float("-inf"), left)
        best, worst = most(left), least(values)
    return values, tokens


@triton.jit(do_not_specialize=("layers", "rows"))
def target_kernel(
    x_ptr, w_ptr, target_ptr, found_ptr, layers, rows, inner, term,
    GROUP: tl.constexpr, TERMS: tl.constexpr, EVEN: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Each column's logit of its target, by the very sums of `lens_kernel`; NaN without."""
    at = residuals(layers, rows, GROUP, BM)
    first, nth, c = tl.program_id(0).to(tl.int64) * BM, tl.arange(0, BN), tl.arange(0, BM)
    token = tl.load(target_ptr + first + tl.minimum(nth, BM - 1)).to(tl.int64)
    w_at = w_ptr + (tl.maximum(token, 0) * inner)[:, None]
    logits = piece(x_ptr + (at * inner)[None, :], w_at, nth < BN, 0, inner, term, 1,
                   TERMS, EVEN, YES, BM, BN, BK)  # fmt: skip
    own = tl.sum(tl.where(nth[:, None] == c[None, :], logits, 0.0), 0)
    has = tl.load(target_ptr + first + c) >= 0
    tl.store(found_ptr + first + c, tl.where(has, own, float("nan")))


@triton.jit(do_not_specialize=("layers", "rows"))
def lens_kernel(
    x_ptr, w_ptr, target_ptr, expected_ptr, sums_ptr, values_ptr, tokens_ptr, ahead_ptr,
    layers, rows, vocab, inner, term, k, stretch,
    GROUP: tl.constexpr, TERMS: tl.constexpr, EVEN: tl.constexpr, KEPT: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """sums [6, tile, column], ahead [tile, column], values and tokens [stretch, KEPT, column].

    `target_ptr` [column] is None where nobody asks for ranks. With GROUP > 1 the last layer is the
    final residual, and the last three sums are E[final - logits] under its weights.
    """
    x_at = x_ptr + (residuals(layers, rows, GROUP, BM) * inner)[None, :]
    c, slot = tl.arange(0, BM), tl.arange(0, KEPT)[:, None]
    column, columns = tl.program_id(0) * BM, tl.num_programs(0).to(tl.int64) * BM
    step = tl.cdiv(vocab, BN) * columns
    values = tl.where(slot < k, float("-inf"), float("inf")) + tl.zeros([KEPT, BM], tl.float32)
    tokens = -1 - slot + tl.zeros([KEPT, BM], tl.int32)
    begin = tl.program_id(1) * stretch
    for start in range(begin, tl.minimum(begin + stretch, vocab), BN):
        n = start + tl.arange(0, BN)
        here = n < vocab
        w_at = w_ptr + (tl.minimum(n, vocab - 1).to(tl.int64) * inner)[:, None]
        logits = piece(x_at, w_at, here, 0, inner, term, 1, TERMS, EVEN, YES, BM, BN, BK)
        tile = start // BN * columns + column
        put(sums_ptr + tile + c, step, logits, logits, here)
        if GROUP > 1:
            final = of_final(logits, layers, GROUP, BN, BM)
            put(sums_ptr + 3 * step + tile + c, step, final, final - logits, here)
        if target_ptr is not None:
            target = tl.load(target_ptr + column + c)[None, :]
            expected = tl.load(expected_ptr + column + c)[None, :]
            larger = (logits > expected) & here[:, None] & (n[:, None] != target)
            tl.store(ahead_ptr + tile + c, tl.sum(tl.where(larger, 1.0, 0.0), 0).to(tl.int32))
        values, tokens = keep_largest(logits, n, here, values, tokens)
    kept = (tl.program_id(1) * KEPT + slot) * columns + column + c[None, :]
    tl.store(values_ptr + kept, values)
    tl.store(tokens_ptr + kept, tokens)


@triton.jit
def together(at, step, columns, tiles, TILES: tl.constexpr):
    """Sums of all tiles under one maximum: log Σ w, Σ w, Σ w · worth."""
    tile = tl.arange(0, TILES)
    at += tile * columns
    top = tl.load(at, mask=tile < tiles, other=float("-inf"))
    highest = tl.max(top, 0)
    scale = tl.exp(top - highest)
    total = tl.sum(scale * tl.load(at + step, mask=tile < tiles, other=0.0), 0)
    mean = tl.sum(scale * tl.load(at + 2 * step, mask=tile < tiles, other=0.0), 0)
    return highest + tl.log(total), total, mean


@triton.jit(do_not_specialize=("layers", "rows", "columns"))
def merge_kernel(
    sums_ptr, values_ptr, tokens_ptr, ahead_ptr, statistics_ptr, rank_ptr, best_ptr, best_token_ptr,
    layers, rows, columns, tiles, stretches, k,
    GROUP: tl.constexpr, TILES: tl.constexpr, STRETCHES: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """One residual: statistics [3, entry] are log_sum_exp, entropy and KL; then the k largest."""
    entry, size = tl.program_id(0).to(tl.int64), layers.to(tl.int64) * rows
    column = entry % rows * GROUP + entry // rows if GROUP > 1 else entry
    columns = columns.to(tl.int64)
    step, tile = tiles * columns, tl.arange(0, TILES)
    log_sum_exp, total, mean = together(sums_ptr + column, step, columns, tiles, TILES)
    entropy = log_sum_exp - mean / total  # pyright: ignore[reportOperatorIssue]
    tl.store(statistics_ptr + entry, log_sum_exp)
    tl.store(statistics_ptr + size + entry, tl.where(entropy < 0, 0.0, entropy))
    if GROUP > 1:
        at = sums_ptr + 3 * step + column
        final, total, across = together(at, step, columns, tiles, TILES)
        kl = across / total - final + log_sum_exp  # pyright: ignore[reportOperatorIssue]
        tl.store(statistics_ptr + 2 * size + entry, tl.where(kl < 0, 0.0, kl))
    if ahead_ptr is not None:
        ahead = tl.load(ahead_ptr + tile * columns + column, mask=tile < tiles, other=0)
        tl.store(rank_ptr + entry, tl.sum(ahead, 0).to(tl.int64))
    c = tl.arange(0, STRETCHES * KEPT)
    live = (c < stretches * KEPT) & (c % KEPT < k)
    values = tl.load(values_ptr + c * columns + column, mask=live, other=float("-inf"))
    tokens = tl.load(tokens_ptr + c * columns + column, mask=live, other=-1)
    for nth in range(k):
        best = tl.max(tl.where(tokens < 0, float("-inf"), values), 0)
        token = tl.min(tl.where((values == best) & (tokens >= 0), tokens, 2147483647), 0)
        tl.store(best_ptr + entry * k + nth, best)
        tl.store(best_token_ptr + entry * k + nth, token.to(tl.int64))  # pyright: ignore
        tokens = tl.where(tokens == token, -1, tokens)
