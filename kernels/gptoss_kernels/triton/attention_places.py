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


def find_places(positions: Int[Tensor, "batch place"], align: int) -> Places:
    """Rank what is not padding (position < 0); nothing is read back to the host."""
    batch, n = positions.shape
    parts = triton.cdiv(n + align, BLOCK)
    place, position = positions.new_empty((2, batch, parts * BLOCK), dtype=torch.int32)
    bounds = positions.new_empty((batch, 4), dtype=torch.int32)
    launch(_places_kernel, (batch, parts), positions.contiguous(), place, position, bounds, n,
           ALIGN=align, BLOCK=BLOCK, STEP=32, num_warps=8)  # fmt: skip
    return Places(place, position, bounds)


def hidden_words(
    hidden: UInt8[Tensor, "batch head place"], place: Int[Tensor, "batch slot"]
) -> Int[Tensor, "batch head word"]:
    """Which slots each head may not see, a bit each, 32 in an int32.

    A row of a tile reads a word where it would read a byte for every key: the tile of scores keeps
    its layout, and so its sums their bits.
    """
    batch, heads, n = hidden.shape
    slots = place.shape[1]
    words = place.new_empty((batch, heads, slots // 32))
    launch(_words_kernel, (batch * heads, slots // BLOCK), hidden, place, words, heads, n, slots,
           WORDS=BLOCK // 32, num_warps=4)  # fmt: skip
    return words


@triton.jit
def _words_kernel(
    hidden_ptr, place_ptr, words_ptr, heads, n, slots, WORDS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    word, bit = tl.program_id(1) * WORDS + tl.arange(0, WORDS), tl.arange(0, 32)
    place = tl.load(place_ptr + row // heads * slots + word[:, None] * 32 + bit[None, :])
    hidden = tl.load(hidden_ptr + row * n + place, mask=place < n, other=0) != 0
    found = tl.sum(hidden.to(tl.int32) << bit[None, :], 1)
    tl.store(words_ptr + row * (slots // 32) + word, found)


@triton.jit
def _places_kernel(
    positions_ptr, place_ptr, position_ptr, bounds_ptr, n,
    ALIGN: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
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
    if shift == most:
        _in_order(positions_ptr, place_ptr, position_ptr, n, at, base + shift, spare)
    else:
        outside = (at < first - base) | (at >= end)
        tl.store(place_ptr + at, spare, mask=outside)
        tl.store(position_ptr + at, FAR, mask=outside)
        _by_rank(positions_ptr, place_ptr, position_ptr, n, at, first - base, STEP)
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
