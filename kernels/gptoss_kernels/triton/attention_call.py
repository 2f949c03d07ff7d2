"""What attention is asked for, made ready for the kernels, and the launches of its forward pass."""

import math
import weakref
from collections import deque
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from gptoss_kernels.triton.attention_kernels import attend_kernel, merge_kernel
from gptoss_kernels.triton.attention_places import Places, find_hidden, find_places
from gptoss_kernels.triton.launch import launch
from gptoss_kernels.triton.tiles import Tile, tile

WIDEST = 1 << 30
"""A window that hides nothing."""


class Seen(NamedTuple):
    """Which query sees which key."""

    query_pos: Tensor
    """[batch, query] int64"""
    key_pos: Tensor
    """[batch, key] int64"""
    window: int | None
    hidden: Tensor | None
    """[batch, head, key] uint8, not 0 where a head may not look; None hides nothing"""
    places: Places

    @property
    def reach(self) -> int:
        return WIDEST if self.window is None else min(self.window, WIDEST)


class Mixed(NamedTuple):
    """What the fused kernel gives."""

    z: Tensor | None
    """[batch, query, head, d_head], in the dtype of q"""
    mass: Tensor
    """[batch, head, query] float32; what the sink absorbs"""
    lse: Tensor
    """[batch, head, query] float32; log2 of a row's sum, the sink's term included"""


def see(
    query_pos: Tensor, key_pos: Tensor, window: int | None, hidden: Tensor | None = None
) -> Seen:
    """Find every key's place; keys that all heads are to ignore [batch, key] become padding."""
    if hidden is not None and hidden.ndim == 2:
        key_pos, hidden = key_pos.masked_fill(hidden.bool(), -1), None
    elif hidden is not None:
        hidden = hidden.to(torch.uint8).contiguous()
    query_pos, key_pos = query_pos.long().contiguous(), key_pos.long().contiguous()
    stretch = tile("attend", 1, key_pos.device).inner
    return Seen(query_pos, key_pos, window, hidden, _places(key_pos, stretch))


class _Found(NamedTuple):
    """Places of a tensor of positions, as long as nobody writes to it."""

    positions: weakref.ref
    version: int
    split: int
    places: Places


_found: deque[_Found] = deque(maxlen=4)


def _places(key_pos: Tensor, split: int) -> Places:
    """`find_places`, once for all layers that have their keys at the same positions."""
    if key_pos.is_inference():
        return find_places(key_pos, split)
    for found in _found:
        same = found.positions() is key_pos and found.split == split
        if same and found.version == key_pos._version:
            return found.places
    places = find_places(key_pos, split)
    _found.append(_Found(weakref.ref(key_pos), key_pos._version, split, places))
    return places


def alike(*tensors: Tensor) -> list[Tensor]:
    """All bfloat16 or all float32, heads of each place side by side."""
    if any(x.dtype != torch.bfloat16 for x in tensors):
        tensors = tuple(x.float() for x in tensors)
    return [
        x if x.stride(3) == 1 and x.stride(2) == x.shape[3] else x.contiguous() for x in tensors
    ]


def width(d_head: int) -> int:
    """Of a tile that holds a head: a power of two that tensor cores take."""
    return max(16, triton.next_power_of_2(d_head))


def strides(*tensors: Tensor) -> list[int]:
    """From one batch row, and one place, to the next."""
    return [step for x in tensors for step in (x.stride(0), x.stride(1))]


def wide(x: Tensor) -> bool:
    """Whether places of a batch row lie further apart than 32 bits can say."""
    return x.shape[1] * x.stride(1) >= 2**31


def size_of(kernel: str, x: Tensor, rows: int) -> Tile:
    return tile(kernel if x.dtype == torch.bfloat16 else f"{kernel}_float32", rows, x.device)


def scale_of(q: Tensor) -> float:
    """What turns q · k into an exponent of 2."""
    return math.log2(math.e) / math.sqrt(q.shape[3])


def attend(
    q: Tensor, k: Tensor, v: Tensor | None, sinks: Tensor, seen: Seen, gain: Tensor | None = None
) -> Mixed:
    """Run the fused kernel; without v only sums are found. `gain` [batch, head, query] scales z."""
    dtype = q.dtype
    q, k, *rest = alike(q, k) if v is None else alike(q, k, v)
    v = rest[0] if rest else None
    batch, n_query, heads, d_head = q.shape
    kv_heads = k.shape[2]
    group = heads // max(1, kv_heads)
    mass, lse = q.new_empty((2, batch, heads, n_query), dtype=torch.float32)
    z = None if v is None else q.new_empty(q.shape)
    size = size_of("attend", q, n_query * group)
    tiles = triton.cdiv(n_query * group, size.rows)
    splits = _splits(size, tiles, k.shape[1], seen.window)
    sums = y = None
    if splits > 1:
        rows = batch * kv_heads * splits * n_query * group
        sums = q.new_empty((rows, 2), dtype=torch.float32)
        y = None if v is None else q.new_empty((rows, width(d_head)), dtype=torch.float32)
    sinks, places = sinks.float().contiguous(), seen.places
    hidden = None if seen.hidden is None else find_hidden(seen.hidden, places, kv_heads)
    launch(attend_kernel, (tiles * splits, kv_heads, batch), q, k, v, sinks, seen.query_pos,
           *places, hidden, gain, z, lse, mass, sums, y, n_query, places.whole.shape[1], kv_heads,
           splits, seen.reach, scale_of(q), *strides(q, k, k if v is None else v),
           G=group, D=d_head, BLOCK_D=width(d_head),
           WINDOWED=seen.window is not None, WIDE=wide(k) or (v is not None and wide(v)),
           ROWS=size.rows, KEYS=size.cols, SPLIT=size.inner, num_warps=size.warps,
           num_stages=size.stages)  # fmt: skip
    if splits > 1:
        launch(merge_kernel, (n_query * group, kv_heads, batch), sums, y, sinks,
               gain, z, lse, mass, n_query, kv_heads, splits, G=group, D=d_head,
               BLOCK_D=width(d_head), ROWS=1, AHEAD=8, num_warps=1)  # fmt: skip
    return Mixed(z if z is None or z.dtype == dtype else z.to(dtype), mass, lse)


def _splits(size: Tile, tiles: int, n_key: int, window: int | None) -> int:
    """Programs that share a tile's keys: 1 where one has little to do, or tiles are many."""
    reach = n_key if window is None else min(n_key, window)
    if tiles > 1 or reach <= size.inner:
        return 1
    return triton.cdiv(n_key, size.inner) + 1
