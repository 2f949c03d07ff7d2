"""Gradients of attention: a row's shares are made again from its lse, a tile at a time.

    p  = 2^(x - lse)    with x = q · k log2(e) / sqrt(d_head)
    ds = p (grad · v - mean) / sqrt(d_head)    mean = grad · z + share grad_share
    dq = Σ_k ds k    dk = Σ_q ds q    dv = Σ_q p grad    d sink = Σ share (grad_share - mean)

One kernel goes over keys for dq, one over queries, in the order of positions and all heads of a
group together, for dk and dv; nothing is summed by atomics. Gradients of cubes that somebody
looked at are plain torch: such a call holds cubes anyway.
"""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from gptoss_kernels.triton.attention_call import (
    Mixed,
    Seen,
    alike,
    scale_of,
    size_of,
    strides,
    width,
)
from gptoss_kernels.triton.attention_kernels import (
    keys_of_tile,
    load_rows,
    own_rows,
    position_of,
    product,
    sees,
    slots_seen,
)
from gptoss_kernels.triton.attention_places import FAR, find_places
from gptoss_kernels.triton.launch import launch

ALIGN = 64


def of_attention(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor], seen: Seen, out: Mixed,
    given: tuple[Tensor, Tensor, Tensor | None], needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Gradients to those of q, k, v and sinks that need one, each in the dtype of its own.

    `given` are gradients of z and of the sink's share, and what z was scaled by.
    """
    assert out.z is not None
    grad, grad_mass, gain = given
    mean = (grad.float() * out.z.float()).sum(-1).transpose(1, 2) + out.mass * grad_mass
    if gain is not None:
        grad = grad.float() * gain.transpose(1, 2)[..., None]
    q, k, v, grad = alike(*inputs[:3], grad.to(inputs[0].dtype))
    found: list[Tensor | None] = [
        x.new_zeros(x.shape) if need else None for x, need in zip((q, k, v), needs, strict=False)
    ]  # keys that nobody may see keep zeros
    _start(q, k, v, seen, (grad.contiguous(), out.lse, mean.contiguous()), found)
    found.append((out.mass * (grad_mass - mean)).sum((0, 2)) if needs[3] else None)
    pairs = zip(found, inputs, strict=True)
    return tuple(None if to is None else to.to(x.dtype) for to, x in pairs)


def _start(
    q: Tensor, k: Tensor, v: Tensor, seen: Seen, given: tuple[Tensor, ...],
    found: list[Tensor | None],
) -> None:  # fmt: skip
    """The kernels for what is asked: gradients to queries, and to keys and values."""
    batch, n_query, heads, d_head = q.shape
    n_key, kv_heads = k.shape[1:3]
    group, size = heads // max(1, kv_heads), size_of("attention_gradient", q, n_query)
    slots, (to_q, to_k, to_v) = seen.places.place.shape[1], found
    shared = dict(
        G=group, D=d_head, BLOCK_D=width(d_head), WINDOWED=seen.window is not None,
        KEYS=size.cols, num_warps=size.warps, num_stages=size.stages,
    )  # fmt: skip
    sizes = (n_query, n_key, slots, kv_heads, seen.reach, scale_of(q), 1 / math.sqrt(d_head),
             *strides(q, k, v))  # fmt: skip
    if to_q is not None:
        launch(_query_kernel, (triton.cdiv(n_query * group, size.rows), kv_heads, batch), q, k, v,
               *given, seen.hidden, seen.query_pos, *seen.places[:3], to_q, *sizes,
               ROWS=size.rows, **shared)  # fmt: skip
    if to_k is not None or to_v is not None:
        queries = find_places(seen.query_pos, ALIGN)
        launch(_key_kernel, (triton.cdiv(slots, size.cols), kv_heads, batch), q, k, v,
               *given, seen.hidden, *queries[:3], *seen.places[:3], to_k, to_v,
               queries.place.shape[1], *sizes, ROWS=size.inner, **shared)  # fmt: skip


def of_gain(z: Tensor | None, grad: Tensor) -> Tensor:
    """Gradient to what scales `z` [batch, query, head, d_head], given as it would be without."""
    assert z is not None
    return (grad.float() * z.float()).sum(-1).transpose(1, 2)


@triton.jit
def _query_kernel(
    q_ptr, k_ptr, v_ptr, grad_ptr, lse_ptr, mean_ptr, hidden_ptr,
    query_pos_ptr, place_ptr, position_ptr, bounds_ptr, to_q_ptr,
    n_query, n_key, slots, kv_heads, window, exponent, scale,
    q_batch, q_step, k_batch, k_step, v_batch, v_step,
    G: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, WINDOWED: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    kv, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    query, member, live = own_rows(tile, n_query, G, ROWS)
    head, heads = kv * G + member, kv_heads * G
    pos = position_of(query_pos_ptr, batch, query, n_query, live)
    q = load_rows(q_ptr + batch * q_batch, query.to(tl.int64) * q_step + head * D, live, D, BLOCK_D)
    own = ((batch * n_query + query) * heads + head) * D
    grad = load_rows(grad_ptr, own, live, D, BLOCK_D)
    row = (batch * heads + head) * n_query + query
    lse = tl.load(lse_ptr + row, mask=live, other=0.0)
    mean = tl.load(mean_ptr + row, mask=live, other=0.0)
    k_ptr, v_ptr = k_ptr + batch * k_batch + kv * D, v_ptr + batch * v_batch + kv * D
    place_ptr, position_ptr = place_ptr + batch * slots, position_ptr + batch * slots
    low, high = slots_seen(bounds_ptr, batch, pos, window, WINDOWED, KEYS)
    to_q = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for start in range(low, high, KEYS):
        slot = start + tl.arange(0, KEYS)
        at, key_pos = keys_of_tile(place_ptr, position_ptr, slot)
        k = load_rows(k_ptr, at * k_step, None, D, BLOCK_D)
        v = load_rows(v_ptr, at * v_step, None, D, BLOCK_D)
        x = product(q, k.T, tl.zeros([ROWS, KEYS], tl.float32))
        seen = sees(pos[:, None], key_pos[None, :], window, WINDOWED)
        if hidden_ptr is not None:
            near = hidden_ptr + (batch * heads + head)[:, None] * n_key + at[None, :]
            seen = seen & (tl.load(near, mask=live[:, None], other=1) == 0)
        p = tl.where(seen, tl.exp2(x * exponent - lse[:, None]), 0.0)
        to_p = product(grad, v.T, tl.zeros([ROWS, KEYS], tl.float32))
        to_q = product((p * (to_p - mean[:, None])).to(k.dtype), k, to_q)
    d = tl.arange(0, BLOCK_D)
    there = live[:, None] & (d < D)[None, :]
    kind = to_q_ptr.dtype.element_ty
    tl.store(to_q_ptr + own[:, None] + d[None, :], (to_q * scale).to(kind), mask=there)


@triton.jit
def _key_kernel(
    q_ptr, k_ptr, v_ptr, grad_ptr, lse_ptr, mean_ptr, hidden_ptr,
    query_place_ptr, query_position_ptr, query_bounds_ptr,
    place_ptr, position_ptr, bounds_ptr, to_k_ptr, to_v_ptr, query_slots,
    n_query, n_key, slots, kv_heads, window, exponent, scale,
    q_batch, q_step, k_batch, k_step, v_batch, v_step,
    G: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, WINDOWED: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    kv, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    slot = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    at, key_pos = keys_of_tile(place_ptr + batch * slots, position_ptr + batch * slots, slot)
    real, heads = key_pos < FAR, kv_heads * G
    k = load_rows(k_ptr + batch * k_batch + kv * D, at * k_step, real, D, BLOCK_D)
    v = load_rows(v_ptr + batch * v_batch + kv * D, at * v_step, real, D, BLOCK_D)
    query_place_ptr += batch * query_slots
    query_position_ptr += batch * query_slots
    low, high = _queries_seeing(query_bounds_ptr, batch, key_pos, window, WINDOWED)
    to_k, to_v = tl.zeros([KEYS, BLOCK_D], tl.float32), tl.zeros([KEYS, BLOCK_D], tl.float32)
    for start in range(low * G // ROWS * ROWS, high * G, ROWS):
        row = start + tl.arange(0, ROWS)
        query_slot = tl.minimum(row // G, query_slots - 1)
        query, pos = keys_of_tile(query_place_ptr, query_position_ptr, query_slot)
        head, live = kv * G + row % G, (pos < FAR) & (row < query_slots * G)
        pos = tl.where(live, pos, -1)
        own = query * q_step + head * D
        q = load_rows(q_ptr + batch * q_batch, own, live, D, BLOCK_D)
        own = ((batch * n_query + query) * heads + head) * D
        grad = load_rows(grad_ptr, own, live, D, BLOCK_D)
        line = (batch * heads + head) * n_query + query
        lse = tl.load(lse_ptr + line, mask=live, other=0.0)
        mean = tl.load(mean_ptr + line, mask=live, other=0.0)
        x = product(k, q.T, tl.zeros([KEYS, ROWS], tl.float32))
        seen = sees(pos[None, :], key_pos[:, None], window, WINDOWED)
        if hidden_ptr is not None:
            near = hidden_ptr + (batch * heads + head)[None, :] * n_key + at[:, None]
            seen = seen & (tl.load(near) == 0)
        p = tl.where(seen, tl.exp2(x * exponent - lse[None, :]), 0.0)
        if to_v_ptr is not None:
            to_v = product(p.to(grad.dtype), grad, to_v)
        if to_k_ptr is not None:
            to_p = product(v, grad.T, tl.zeros([KEYS, ROWS], tl.float32))
            to_k = product((p * (to_p - mean[None, :])).to(q.dtype), q, to_k)
    d = tl.arange(0, BLOCK_D)
    place = ((batch * n_key + at) * kv_heads + kv)[:, None] * D + d[None, :]
    there = real[:, None] & (d < D)[None, :]
    if to_k_ptr is not None:
        tl.store(to_k_ptr + place, (to_k * scale).to(to_k_ptr.dtype.element_ty), mask=there)
    if to_v_ptr is not None:
        tl.store(to_v_ptr + place, to_v.to(to_v_ptr.dtype.element_ty), mask=there)


@triton.jit
def _queries_seeing(bounds_ptr, batch, key_pos, window, WINDOWED: tl.constexpr):
    """First and end of the query slots that see any of some keys."""
    base = tl.load(bounds_ptr + batch * 4)
    low, high = tl.load(bounds_ptr + batch * 4 + 1), tl.load(bounds_ptr + batch * 4 + 2)
    latest = tl.max(tl.where(key_pos < FAR, key_pos, -1), 0)
    if tl.load(bounds_ptr + batch * 4 + 3) != 0:
        low = tl.maximum(low, tl.min(key_pos, 0) - base)
        if WINDOWED:
            high = tl.minimum(high, latest + window - base)
    none = latest < 0  # pyright: ignore[reportOperatorIssue]
    return tl.where(none, 0, low), tl.where(none, 0, high)


# ---- cubes ---------------------------------------------------------------------------------------


def of_softmax(
    pattern: Tensor, mass: Tensor, grad: Tensor, grad_mass: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients to scores and to sinks [head]; the sink is one more score."""
    mean = (pattern * grad).sum(-1) + mass * grad_mass
    return pattern * (grad - mean[..., None]), (mass * (grad_mass - mean)).sum((0, 2))


def of_scores(
    q: Tensor, k: Tensor, grad: Tensor, needs: Sequence[bool] = (True, True)
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients to queries and keys that need one; `grad` is 0 where a key is hidden."""
    grad = grad.unflatten(1, (k.shape[2], -1)) / math.sqrt(q.shape[3])
    to_q = to_k = None
    if needs[0]:
        to_q = torch.einsum("bngqk,bknd->bqngd", grad, k.float()).flatten(2, 3).to(q.dtype)
    if needs[1]:
        grouped = q.float().unflatten(2, (k.shape[2], -1))  # [batch, query, kv_head, group, d_head]
        to_k = torch.einsum("bngqk,bqngd->bknd", grad, grouped).to(k.dtype)
    return to_q, to_k


def of_mixture(
    pattern: Tensor, v: Tensor, gain: Tensor | None, grad: Tensor, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients to pattern, values and gain that need one."""
    grouped = grad.float().unflatten(2, (v.shape[2], -1))
    to_pattern = to_v = to_gain = None
    if needs[0] or needs[2]:
        to_pattern = torch.einsum("bqngd,bknd->bngqk", grouped, v.float()).flatten(1, 2)
        to_gain = (pattern * to_pattern).sum(-1) if needs[2] else None
    if gain is not None:
        pattern = pattern * gain[..., None]
        to_pattern = None if to_pattern is None else to_pattern * gain[..., None]
    if needs[1]:
        shares = pattern.unflatten(1, (v.shape[2], -1))
        to_v = torch.einsum("bngqk,bqngd->bknd", shares, grouped).to(v.dtype)
    return to_pattern if needs[0] else None, to_v, to_gain
