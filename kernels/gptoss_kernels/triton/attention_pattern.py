"""Scores and patterns as cubes [batch, head, query, key] float32, for those who ask for them.

    q, k         -> scores
    q, k, lse    -> pattern          lse is the fused kernel's, so a pattern costs one product
    scores       -> pattern, sink    of chosen rows: those somebody edited
    pattern, v   -> z                of chosen rows

Keys lie as in memory. Hidden keys hold float32's minimum in scores and 0 in patterns. Sums over
keys run in the order of positions, padding (that an edit may have made visible) last.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from gptoss_kernels.triton.attention_call import (
    Mixed,
    Seen,
    alike,
    scale_of,
    strides,
    width,
)
from gptoss_kernels.triton.attention_kernels import (
    gained,
    load_rows,
    own_rows,
    position_of,
    product,
    sees,
)
from gptoss_kernels.triton.launch import launch
from gptoss_kernels.triton.tiles import tile

HIDDEN = tl.constexpr(-3.4028234663852886e38)
"""Score of a key that a query does not see: float32's minimum."""


def score(q: Tensor, k: Tensor, seen: Seen) -> Tensor:
    """Scores before the softmax."""
    return _cube(q, k, seen, None)


def find_pattern(q: Tensor, k: Tensor, seen: Seen, lse: Tensor) -> Tensor:
    """Shares of all keys; a row sums to 1 less what its sink absorbs."""
    return _cube(q, k, seen, lse)


def _cube(q: Tensor, k: Tensor, seen: Seen, lse: Tensor | None) -> Tensor:
    q, k = alike(q, k)
    batch, n_query, heads, d_head = q.shape
    n_key, kv_heads = k.shape[1:3]
    cube = q.new_empty((batch, heads, n_query, n_key), dtype=torch.float32)
    rows = n_query * (heads // max(1, kv_heads))
    size = tile("attention_cube", rows, q.device)
    grid = (triton.cdiv(rows, size.rows) * triton.cdiv(n_key, size.cols), kv_heads, batch)
    scale = 1 / math.sqrt(d_head) if lse is None else scale_of(q)
    launch(_cube_kernel, grid, q, k, seen.query_pos, seen.key_pos, seen.hidden, lse, cube,
           n_query, n_key, kv_heads, seen.reach, scale, *strides(q, k), G=heads // max(1, kv_heads),
           D=d_head, BLOCK_D=width(d_head), WINDOWED=seen.window is not None,
           ROWS=size.rows, KEYS=size.cols, num_warps=size.warps,
           num_stages=size.stages)  # fmt: skip
    return cube


def soften(
    scores: Tensor, sinks: Tensor, seen: Seen, rows: Tensor, into: tuple[Tensor, Mixed]
) -> None:
    """Write pattern, mass and lse of `rows` (bool [batch, head, query]) over what is there."""
    pattern, sums = into
    batch, heads, n_query, n_key = scores.shape
    scores, sinks = scores.contiguous(), sinks.float().contiguous()
    launch(_soften_kernel, (heads * n_query, batch), scores, sinks, seen.key_pos,
           seen.places.place, seen.places.bounds, seen.places.position,
           rows.to(torch.uint8), pattern, sums.mass, sums.lse, n_query, n_key,
           seen.places.place.shape[1], KEYS=tile("attention_cube", n_query, scores.device).inner,
           num_warps=4)  # fmt: skip


def mix(
    pattern: Tensor, v: Tensor, seen: Seen, rows: Tensor, gain: Tensor | None, z: Tensor
) -> None:
    """Write z of `rows` (bool [batch, head, query]), mixed by `pattern` and scaled by `gain`, over
    what is there."""
    (v,) = alike(v)
    batch, heads, n_query, n_key = pattern.shape
    kv_heads, d_head = v.shape[2:]
    group = heads // max(1, kv_heads)
    size = tile("attention_cube", n_query * group, v.device)
    launch(_mix_kernel, (triton.cdiv(n_query * group, size.rows), kv_heads, batch),
           pattern.contiguous(), v, seen.key_pos, seen.places.place, seen.places.bounds,
           seen.places.position, rows.to(torch.uint8), gain, z, n_query, n_key,
           seen.places.place.shape[1], kv_heads, *strides(v), G=group, D=d_head,
           BLOCK_D=width(d_head), ROWS=size.rows, KEYS=size.cols, num_warps=size.warps,
           num_stages=size.stages)  # fmt: skip


def rows_apart(given: Tensor, plain: Tensor) -> Tensor:
    """[batch, head, query]; whether any bit of the row differs."""
    if given.dtype != torch.float32 or given.shape != plain.shape:
        raise ValueError(
            f"attention: a tap returns what it was shown, {tuple(plain.shape)} float32; "
            f"got {tuple(given.shape)} {given.dtype}"
        )
    return (given.contiguous().view(torch.int32) != plain.view(torch.int32)).any(-1)


@triton.jit
def _cube_kernel(
    q_ptr, k_ptr, query_pos_ptr, key_pos_ptr, hidden_ptr, lse_ptr, cube_ptr,
    n_query, n_key, kv_heads, window, scale, q_batch, q_step, k_batch, k_step,
    G: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, WINDOWED: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Scores of a tile of rows and keys, or with lse their shares."""
    kv, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    across = tl.cdiv(n_key, KEYS)
    query, member, live = own_rows(tl.program_id(0) // across, n_query, G, ROWS)
    head, heads = kv * G + member, kv_heads * G
    pos = position_of(query_pos_ptr, batch, query, n_query, live)
    key = (tl.program_id(0) % across).to(tl.int64) * KEYS + tl.arange(0, KEYS)
    key_pos = tl.load(key_pos_ptr + batch * n_key + key, mask=key < n_key, other=-1).to(tl.int32)
    q = load_rows(q_ptr + batch * q_batch, query.to(tl.int64) * q_step + head * D, live, D, BLOCK_D)
    k = load_rows(k_ptr + batch * k_batch + kv * D, key * k_step, key_pos >= 0, D, BLOCK_D)
    x = product(q, k.T, tl.zeros([ROWS, KEYS], tl.float32))
    seen = sees(pos[:, None], key_pos[None, :], window, WINDOWED) & (key_pos >= 0)[None, :]
    there = live[:, None] & (key < n_key)[None, :]
    row = (batch * heads + head) * n_query + query
    if hidden_ptr is not None:
        at = (batch * heads + head)[:, None] * n_key + key[None, :]
        seen = seen & (tl.load(hidden_ptr + at, mask=there, other=1) == 0)
    if lse_ptr is None:
        x = tl.where(seen, x * scale, HIDDEN)
    else:
        lse = tl.load(lse_ptr + row, mask=live, other=0.0)
        x = tl.exp2(tl.fma(x, tl.full([ROWS, KEYS], scale, tl.float32), -lse[:, None]))
        x = tl.where(seen, x, 0.0)
    tl.store(cube_ptr + row[:, None] * n_key + key[None, :], x, mask=there)


@triton.jit
def _turn(turn, key_pos_ptr, place_ptr, bounds_ptr, position_ptr, batch, n_key, KEYS: tl.constexpr):
    """Keys of one step of a sum: first the slots, a tile at a time, then padding."""
    low, high = tl.load(bounds_ptr + batch * 4 + 1), tl.load(bounds_ptr + batch * 4 + 2)
    before = tl.cdiv(high, KEYS)
    if turn < before:
        slot = turn * KEYS + tl.arange(0, KEYS)
        there = (slot >= low) & (slot < high)
        real = tl.load(position_ptr + slot, mask=there, other=2**31 - 1) < 2**31 - 1
        at = tl.load(place_ptr + slot, mask=there, other=0).to(tl.int64)
    else:
        at = (turn - before).to(tl.int64) * KEYS + tl.arange(0, KEYS)
        real = (at < n_key) & (tl.load(key_pos_ptr + at, mask=at < n_key, other=0) < 0)
    return at, real


@triton.jit(do_not_specialize=("n_query", "n_key", "slots"))  # they may not order a row's sum
def _soften_kernel(
    scores_ptr, sinks_ptr, key_pos_ptr, place_ptr, bounds_ptr, position_ptr, rows_ptr,
    pattern_ptr, mass_ptr, lse_ptr, n_query, n_key, slots, KEYS: tl.constexpr,
):  # fmt: skip
    """One row."""
    batch = tl.program_id(1).to(tl.int64)
    row = batch * tl.num_programs(0) + tl.program_id(0)
    if tl.load(rows_ptr + row) != 0:
        scores_ptr, pattern_ptr = scores_ptr + row * n_key, pattern_ptr + row * n_key
        key_pos_ptr, log2e = key_pos_ptr + batch * n_key, 1.4426950408889634
        place_ptr, position_ptr = place_ptr + batch * slots, position_ptr + batch * slots
        sink = tl.load(sinks_ptr + tl.program_id(0) // n_query) * log2e
        i = tl.arange(0, KEYS)
        top = tl.full([KEYS], HIDDEN, tl.float32)
        for start in range(0, n_key, KEYS):
            at = start + i
            top = tl.maximum(top, tl.load(scores_ptr + at, mask=at < n_key, other=HIDDEN))
        peak = tl.maximum(tl.max(top * log2e, 0), sink)
        sums, end = tl.zeros([KEYS], tl.float32), tl.load(bounds_ptr + batch * 4 + 2)
        for turn in range(0, tl.cdiv(end, KEYS) + tl.cdiv(n_key, KEYS)):
            at, real = _turn(turn, key_pos_ptr, place_ptr, bounds_ptr, position_ptr, batch, n_key,
                             KEYS)  # fmt: skip
            x = tl.load(scores_ptr + at, mask=real, other=HIDDEN)
            sums += tl.where(real, tl.exp2(x * log2e - peak), 0.0)
        absorbed = tl.exp2(sink - peak)
        total = tl.sum(sums, 0) + absorbed
        for start in range(0, n_key, KEYS):
            at = start + i
            x = tl.load(scores_ptr + at, mask=at < n_key, other=HIDDEN)
            tl.store(pattern_ptr + at, tl.exp2(x * log2e - peak) / total, mask=at < n_key)
        tl.store(mass_ptr + row, absorbed / total)
        tl.store(lse_ptr + row, peak + tl.log2(total))


@triton.jit
def _mix_kernel(
    pattern_ptr, v_ptr, key_pos_ptr, place_ptr, bounds_ptr, position_ptr, rows_ptr, gain_ptr,
    z_ptr, n_query, n_key, slots, kv_heads, v_batch, v_step,
    G: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):  # fmt: skip
    kv, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    query, member, live = own_rows(tl.program_id(0), n_query, G, ROWS)
    head, heads = kv * G + member, kv_heads * G
    row = (batch * heads + head) * n_query + query
    wanted = tl.load(rows_ptr + row, mask=live, other=0) != 0
    if tl.max(wanted.to(tl.int32), 0) != 0:
        key_pos_ptr, v_ptr = key_pos_ptr + batch * n_key, v_ptr + batch * v_batch + kv * D
        place_ptr, position_ptr = place_ptr + batch * slots, position_ptr + batch * slots
        z, end = tl.zeros([ROWS, BLOCK_D], tl.float32), tl.load(bounds_ptr + batch * 4 + 2)
        for turn in range(0, tl.cdiv(end, KEYS) + tl.cdiv(n_key, KEYS)):
            at, real = _turn(turn, key_pos_ptr, place_ptr, bounds_ptr, position_ptr, batch, n_key,
                             KEYS)  # fmt: skip
            p = tl.load(pattern_ptr + row[:, None] * n_key + at[None, :],
                        mask=wanted[:, None] & real[None, :], other=0.0)  # fmt: skip
            used = real & (tl.max((p != 0).to(tl.int32), 0) != 0)
            z = product(p, load_rows(v_ptr, at * v_step, used, D, BLOCK_D), z)
        z = z.to(z_ptr.dtype.element_ty)
        if gain_ptr is not None:
            z = gained(z, tl.load(gain_ptr + row, mask=wanted, other=0.0))
        d = tl.arange(0, BLOCK_D)
        at = ((batch * n_query + query) * heads + head)[:, None] * D + d[None, :]
        there = wanted[:, None] & (d < D)[None, :]
        tl.store(z_ptr + at, z, mask=there)
