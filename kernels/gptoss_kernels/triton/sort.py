"""Rows by expert: which (token, slot) pairs a program takes, known without asking the device.

A tile is up to `rows` slots of one expert. Few slots need no sorting: a program stands at every
slot, finds its expert's others, and goes on only if it comes first of a tile. Many are sorted once;
the grid has room for the most tiles there can be, and programs beyond the last one end at once.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Int
from torch import Tensor

FEW = 64
"""Slots that every program can look through by itself."""


class Plan(NamedTuple):
    """Slots in tiles of one expert each."""

    tiles: int
    """programs per tile of outputs; some end at once"""
    slots: int
    """(token, slot) pairs"""
    table: Tensor
    """[slot] expert, or [3, tile] expert (-1: none), first row and end of the expert's rows"""
    order: Tensor | None
    """[row] slot of each sorted row; None if there are few"""


def plan_rows(indices: Int[Tensor, "batch pos k"], experts: int, rows: int) -> Plan:
    """Tiles of up to `rows` slots; nothing waits for the device."""
    flat = indices.flatten()
    slots = flat.numel()
    if slots <= FEW:
        return Plan(slots, slots, flat.contiguous(), None)
    tiles = slots // rows + min(experts, slots)
    order = torch.argsort(flat, stable=True)
    every = torch.arange(experts + 1, device=flat.device, dtype=flat.dtype)
    bounds = torch.searchsorted(flat[order], every)
    count = (bounds.diff() + (rows - 1)) // rows  # [expert] tiles of each
    last = count.cumsum(0)
    tile = torch.arange(tiles, device=flat.device)
    owner = torch.searchsorted(last, tile, right=True)
    known = owner.clamp(max=experts - 1)
    first = bounds[known] + (tile - (last - count)[known]) * rows
    table = torch.stack((torch.where(owner < experts, owner, -1), first, bounds[known + 1]))
    return Plan(tiles, slots, table.int(), order.int())


@triton.jit
def rows_of(table_ptr, order_ptr, tile, tiles, slots, ROWS: tl.constexpr, MOST: tl.constexpr):
    """Expert of a tile (-1: nothing to do), its slots [ROWS] and which of them are real."""
    i = tl.arange(0, ROWS)
    if order_ptr is None:
        j = tl.arange(0, MOST)
        owner = tl.load(table_ptr + j, mask=j < slots, other=-1).to(tl.int32)
        expert = tl.load(table_ptr + tile).to(tl.int32)
        same = (owner == expert).to(tl.int32)
        rank = tl.cumsum(same, 0) - same
        first = tl.sum(tl.where(j < tile, same, 0), 0)
        chosen = (same > 0)[None, :] & (rank[None, :] == (first + i)[:, None])
        slot = tl.sum(tl.where(chosen, j[None, :], 0), 1)
        real = first + i < tl.sum(same, 0)
        expert = tl.where(first % ROWS == 0, expert, -1)  # pyright: ignore
    else:
        expert = tl.load(table_ptr + tile)
        first = tl.load(table_ptr + tiles + tile)
        end = tl.load(table_ptr + 2 * tiles + tile)
        real = first + i < end
        slot = tl.load(order_ptr + first + i, mask=real, other=0)
    return expert, slot.to(tl.int64), real
