"""Where the key of each position lies, so that sums over keys run in the order of positions.

A table gives every position a slot; slots begin at a multiple of `align` positions, so a tile of
keys holds the same keys whatever padding, chunking or a trimmed cache did to their order in memory.
One program reads all positions of its batch row. Where memory holds them in order (index - position
is one number) slots follow at once; where padding lies in between, or nothing is in order, keys are
ranked by counting.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Int, UInt8
from torch import Tensor

from gptoss_kernels.triton.launch import launch

BLOCK = 512
STEP = 16
"""Slots that share a bit where a word tells of a block."""
FAR = tl.constexpr(2**31 - 1)
"""Position of a slot that holds no key: later than any query."""


class Places(NamedTuple):
    """All int32."""

    place: Int[Tensor, "batch slot"]
    """where the slot's key lies in memory; any real key's place where it has none"""
    position: Int[Tensor, "batch slot"]
    """its position; FAR where there is none"""
    bounds: Int[Tensor, "batch 4"]
    """position of slot 0, first slot, end of slots, whether slot i holds position i of slot 0"""
    whole: Int[Tensor, "batch block"]
    """for a block of slots a bit for each STEP: all hold a key, slot i position i of slot 0"""


def find_places(positions: Int[Tensor, "batch place"], align: int) -> Places:
    """Rank what is not padding (position < 0); nothing is read back to the host."""
    batch, n = positions.shape
    parts = triton.cdiv(n + align, BLOCK)
    place, position = positions.new_empty((2, batch, parts * BLOCK), dtype=torch.int32)
    bounds = positions.new_empty((batch, 4), dtype=torch.int32)
    whole = positions.new_empty((batch, parts), dtype=torch.int32)
    launch(_places_kernel, (batch, parts), positions.contiguous(), place, position, bounds, whole,
           n, ALIGN=align, BLOCK=BLOCK, STEP=STEP, RANKED=32, num_warps=8)  # fmt: skip
    return Places(place, position, bounds, whole)


def find_hidden(
    hidden: UInt8[Tensor, "batch head place"], places: Places, kv_heads: int
) -> Int[Tensor, "batch kv_head block word"]:
    """Keys hidden from heads, as bits of slots in int32.

    For each block of slots and each head that shares keys BLOCK / 32 words with a bit for each slot
    it may not see, then two words with a bit for each STEP slots: no head of the group has any of
    them hidden; and they are whole besides. A row of a tile reads a word where it would read a byte
    for every key: the tile of scores keeps its layout, and so its sums their bits.
    """
    batch, heads, n = hidden.shape
    blocks, group = places.whole.shape[1], heads // max(1, kv_heads)
    words = places.whole.new_empty((batch, kv_heads, blocks, hidden_length(group)))
    launch(_hidden_kernel, (batch * kv_heads, blocks), hidden, places.place, places.whole, words,
           kv_heads, n, G=group, BLOCK=BLOCK, STEP=STEP, num_warps=4)  # fmt: skip
    return words


def hidden_length(group: int) -> int:
    """Words that tell what is hidden from so many heads in a block of slots."""
    return group * BLOCK // 32 + 2


@triton.jit
def _hidden_kernel(
    hidden_ptr, place_ptr, whole_ptr, words_ptr, kv_heads, n,
    G: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """A block of slots, for the heads of a group."""
    group, block, blocks = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    word, bit = tl.arange(0, BLOCK // 32), tl.arange(0, 32)
    slot = block * BLOCK + word[:, None] * 32 + bit[None, :]
    at = group // kv_heads * blocks
    place = tl.load(place_ptr + at * BLOCK + slot)
    words_ptr += (group * blocks + block) * (G * BLOCK // 32 + 2)
    ever = tl.zeros([BLOCK // 32, 32], tl.int32)
    for member in range(G):
        near = hidden_ptr + (group * G + member) * n + place
        hidden = (tl.load(near, mask=place < n, other=0) != 0).to(tl.int32)
        tl.store(words_ptr + member * (BLOCK // 32) + word, tl.sum(hidden << bit[None, :], 1))
        ever = ever | hidden
    clear = _word(ever == 0, BLOCK, STEP)
    tl.store(words_ptr + G * BLOCK // 32, clear)
    tl.store(words_ptr + G * BLOCK // 32 + 1, clear & tl.load(whole_ptr + at + block))


@triton.jit
def _word(true, BLOCK: tl.constexpr, STEP: tl.constexpr):
    """Bit i: whether `true` holds for all slots of a block from STEP i to STEP (i + 1) - 1."""
    every = tl.min(tl.reshape(true.to(tl.int32), [BLOCK // STEP, STEP]), 1)
    return tl.sum(every << tl.arange(0, BLOCK // STEP), 0)


@triton.jit
def _places_kernel(
    positions_ptr, place_ptr, position_ptr, bounds_ptr, whole_ptr, n,
    ALIGN: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr, RANKED: tl.constexpr,
):  # fmt: skip
    batch, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    positions_ptr += batch * n
    place_ptr += batch * tl.num_programs(1) * BLOCK
    position_ptr += batch * tl.num_programs(1) * BLOCK
    i = tl.arange(0, BLOCK)
    first, least = tl.full([BLOCK], FAR, tl.int32), tl.full([BLOCK], FAR, tl.int32)
    last, most = tl.full([BLOCK], -1, tl.int32), tl.full([BLOCK], -FAR, tl.int32)
    count, spare = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.int32)
    for start in range(0, n, BLOCK):
        at = start + i
        pos = tl.load(positions_ptr + at, mask=at < n, other=-1).to(tl.int32)
        real = pos >= 0
        first, last = tl.minimum(first, tl.where(real, pos, FAR)), tl.maximum(last, pos)
        least = tl.minimum(least, tl.where(real, at - pos, FAR))
        most = tl.maximum(most, tl.where(real, at - pos, -FAR))
        count += real.to(tl.int32)
        spare = tl.where(real, at, spare)
    last, shift, most, count = tl.max(last, 0), tl.min(least, 0), tl.max(most, 0), tl.sum(count, 0)
    spare = tl.max(spare, 0)
    first = tl.where(last < 0, 0, tl.min(first, 0))  # pyright: ignore[reportOperatorIssue]
    base = first // ALIGN * ALIGN
    at = part * BLOCK + i
    end = tl.where(shift == most, last - base + 1, first - base + count)
    whole_ptr += batch * tl.num_programs(1) + part
    if shift == most:
        real = _in_order(positions_ptr, place_ptr, position_ptr, n, at, base + shift, spare)
        tl.store(whole_ptr, _word(real, BLOCK, STEP))
    else:
        tl.store(whole_ptr, 0)
        outside = (at < first - base) | (at >= end)
        tl.store(place_ptr + at, spare, mask=outside)
        tl.store(position_ptr + at, FAR, mask=outside)
        _by_rank(positions_ptr, place_ptr, position_ptr, n, at, first - base, RANKED)
    if part == 0:
        bounds_ptr += batch * 4
        tl.store(bounds_ptr, base)
        tl.store(bounds_ptr + 1, first - base)
        tl.store(bounds_ptr + 2, end)
        tl.store(bounds_ptr + 3, tl.where(shift == most, 1, 0))


@triton.jit
def _in_order(positions_ptr, place_ptr, position_ptr, n, slot, shift, spare):
    at = slot + shift
    pos = tl.load(positions_ptr + at, mask=(at >= 0) & (at < n), other=-1).to(tl.int32)
    tl.store(place_ptr + slot, tl.where(pos >= 0, at, spare))
    tl.store(position_ptr + slot, tl.where(pos >= 0, pos, FAR))
    return pos >= 0


@triton.jit
def _by_rank(positions_ptr, place_ptr, position_ptr, n, at, first, STEP: tl.constexpr):
    """Keys that share a position come in the order of memory."""
    pos = tl.load(positions_ptr + at, mask=at < n, other=-1).to(tl.int32)
    slot = tl.zeros_like(pos) + first
    for start in range(0, n, STEP):
        other = start + tl.arange(0, STEP)
        their = tl.load(positions_ptr + other, mask=other < n, other=-1).to(tl.int32)
        tie = (their[None, :] == pos[:, None]) & (other[None, :] < at[:, None])
        before = (their >= 0)[None, :] & ((their[None, :] < pos[:, None]) | tie)
        slot += tl.sum(before.to(tl.int32), 1)
    tl.store(place_ptr + slot, at, mask=pos >= 0)
    tl.store(position_ptr + slot, pos, mask=pos >= 0)
