"""Attention patterns a few queries at a time, from a layer's own queries, keys and sinks.

The cube [head, query, key] of a long prompt never exists: a tile of queries is scored against the
keys it can reach, looked at, and dropped. What is computed is what the model computes from q and k;
an edit of attn.hook_attn_scores or attn.hook_pattern itself is not seen here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gptoss_hooks import axes
from gptoss_hooks.points import HookPoint
from gptoss_kernels.attention import AttentionTap, attention
from gptoss_workbench.text import Batch

SCORES = 1 << 21
"""Scores held at a time: 8 MiB of float32."""


class Tile(NamedTuple):
    """The pattern of some neighbouring queries over the keys that any of them can reach."""

    queries: slice
    """columns of the prompt"""
    keys: slice
    """columns of the prompt"""
    pattern: Float[Tensor, "batch head query key"]
    """rows sum to 1 - sink"""
    sink: Float[Tensor, "batch head query"]
    """what the sink absorbs"""


class Layer(NamedTuple):
    """What a layer's attention is computed from."""

    number: int
    q: Float[Tensor, "batch query head d_head"]
    """after the rotation"""
    k: Float[Tensor, "batch key kv_head d_head"]
    """after the rotation"""
    sinks: Float[Tensor, " head"]
    positions: Int[Tensor, "batch pos"]
    """-1 on padding"""
    window: int | None
    """None where every earlier place can be seen"""


def each_layer(
    model: Any, prompts: Batch, layers: Sequence[int], look: Callable[[Layer], None]
) -> None:
    """Run the prompts and show every layer's queries and keys as they are made."""
    positions = model.new_cache().positions(prompts.mask)
    queries: list[Tensor] = []

    def record(tensor: Tensor, hook: HookPoint) -> None:
        if hook.name.endswith("hook_rot_q"):
            queries[:] = [tensor]
            return
        number = axes.layer_of(hook.name) or 0
        attn = model.blocks[number].attn
        look(Layer(number, queries.pop(), tensor, attn.sinks, positions, attn.window))

    names = [f"blocks.{i}.attn.hook_rot_{each}" for i in layers for each in "qk"]
    with torch.no_grad(), model.recording(names, record):
        model(
            prompts.tokens,
            attention_mask=prompts.mask,
            return_type=None,
            stop_at_layer=max(layers) + 1,
        )


def tiles(layer: Layer) -> Iterator[Tile]:
    """Walk the queries of a layer; tiles of padding only are left out."""
    batch, width, heads = layer.q.shape[:3]
    step = max(1, SCORES // (batch * heads * width))
    for start in range(0, width, step):
        queries = slice(start, min(start + step, width))
        if bool((layer.positions[:, queries] >= 0).any()):
            yield tile(layer, queries, reach(layer, queries))


def reach(layer: Layer, queries: slice) -> slice:
    """Columns from the first key that a query of the tile can see to the last."""
    at, keys = layer.positions[:, queries], layer.positions
    last = at.amax(1, keepdim=True)
    first = at.masked_fill(at < 0, torch.iinfo(at.dtype).max).amin(1, keepdim=True)
    seen = (keys >= 0) & (keys <= last)
    if layer.window is not None:
        seen &= keys > first - layer.window
    columns = seen.any(0).nonzero()[:, 0]
    return slice(int(columns[0]), int(columns[-1]) + 1)


def tile(layer: Layer, queries: slice, keys: slice) -> Tile:
    """Score some queries against some keys, with the kernel the forward pass is defined by."""
    seen: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        seen.append(tensor)
        return tensor

    k = layer.k[:, keys]
    attention(
        layer.q[:, queries], k, k[..., :1], layer.sinks,
        layer.positions[:, queries], layer.positions[:, keys],
        window=layer.window, tap=AttentionTap(sink=keep, pattern=keep),
    )  # fmt: skip
    sink, pattern = seen
    return Tile(queries, keys, pattern, sink)


def distances(layer: Layer, part: Tile) -> Int[Tensor, "batch query key"]:
    """How many tokens back each key lies; -1 where the query cannot see it."""
    query, key = layer.positions[:, part.queries, None], layer.positions[:, None, part.keys]
    back = query - key
    hidden = (back < 0) | (key < 0) | (query < 0)
    if layer.window is not None:
        hidden |= back >= layer.window
    return back.masked_fill(hidden, -1)
