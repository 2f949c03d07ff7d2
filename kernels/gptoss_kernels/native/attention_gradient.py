"""Gradients of the steps of attention, in plain torch and float32.

    z = Σ p v       grad_p = grad_z · v            grad_v = Σ p grad_z
    p = softmax s   grad_s = p (grad_p - Σ p grad_p - sink grad_sink)
    s = q · k / √d  grad_q = Σ grad_s k / √d       grad_k = Σ grad_s q / √d

A sink takes part in the softmax as one more score, with no value. Patterns that were not kept are
made again, for some queries and the keys that those see at a time.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from gptoss_kernels.native.attention_call import find_pattern

TILE = 1 << 22
"""Scores made again at a time: 16 MiB of float32."""


def hidden(query_pos: Tensor, key_pos: Tensor, window: int) -> Tensor:
    """[batch, query, key]; whether a key is padding, ahead or out of the window."""
    apart = query_pos[:, :, None] - key_pos[:, None, :]
    return (apart < 0) | (apart >= window) | (key_pos < 0)[:, None, :]


def tiles(
    query_pos: Tensor, key_pos: Tensor, window: int, heads: int
) -> Iterator[tuple[slice, slice]]:
    """Some queries and the keys that any of them sees, until all queries were given."""
    batch, n_key = key_pos.shape
    step = max(1, TILE // max(1, batch * heads * n_key))
    for start in range(0, query_pos.shape[1], step):
        rows = slice(start, start + step)
        seen = (~hidden(query_pos[:, rows], key_pos, window)).any(1).any(0).nonzero()
        if len(seen):
            yield rows, slice(int(seen[0]), int(seen[-1]) + 1)


def by_head(x: Tensor, kv_heads: int) -> Tensor:
    """[batch, place, head, d_head] -> [batch, kv_head, group · place, d_head] in float32."""
    batch, places, heads, d_head = x.shape
    return x.float().transpose(1, 2).reshape(batch, kv_heads, heads // kv_heads * places, d_head)


def by_place(x: Tensor, heads: int) -> Tensor:
    """[batch, kv_head, group · place, d_head] -> [batch, place, head, d_head]."""
    batch, kv_heads, rows, d_head = x.shape
    return x.reshape(batch, heads, rows * kv_heads // heads, d_head).transpose(1, 2)


def of_softmax(
    pattern: Tensor, sink: Tensor, grad: Tensor, grad_sink: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients to scores and to sinks [head]."""
    mean = (pattern * grad).sum(-1) + sink * grad_sink
    return pattern * (grad - mean[..., None]), (sink * (grad_sink - mean)).sum((0, 2))


def of_scores(
    q: Tensor, k: Tensor, query_pos: Tensor, key_pos: Tensor, window: int, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients to queries and keys; hidden scores are constants."""
    grad = grad.masked_fill(hidden(query_pos, key_pos, window)[:, None], 0)
    return _of_dots(by_head(q, k.shape[2]), k, grad, q.shape[2])


def of_mixture(pattern: Tensor, v: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients to pattern and values."""
    rows, values = by_head(grad, v.shape[2]), v.float().transpose(1, 2)
    grad_v = pattern.reshape(*rows.shape[:3], -1).mT @ rows
    return (rows @ values.mT).view_as(pattern), grad_v.transpose(1, 2)


def _of_dots(rows: Tensor, k: Tensor, grad: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """`rows` are queries by key/value head, `grad` is [batch, head, query, key]."""
    grad = grad.reshape(*rows.shape[:3], -1) / math.sqrt(rows.shape[3])
    grad_q = grad @ k.float().transpose(1, 2)
    return by_place(grad_q, heads), (grad.mT @ rows).transpose(1, 2)


class Gradients(NamedTuple):
    """Of `attend`, or of `find_pattern` (no v), in float32."""

    q: Tensor
    k: Tensor
    v: Tensor | None
    sinks: Tensor


def of_attention(
    q: Tensor, k: Tensor, v: Tensor | None, sinks: Tensor, query_pos: Tensor, key_pos: Tensor,
    window: int, grad: Tensor, grad_sink: Tensor,
) -> Gradients:  # fmt: skip
    """`grad` is that of z, or without v that of the pattern."""
    heads, kv_heads = q.shape[2], k.shape[2]
    grad_q, grad_k = torch.zeros(q.shape), torch.zeros(k.shape)
    grad_v, grad_sinks = None if v is None else torch.zeros(v.shape), torch.zeros(heads)
    for rows, keys in tiles(query_pos, key_pos, window, heads):
        part, near = q[:, rows], k[:, keys]
        pattern, sink = find_pattern(
            part, near, sinks, query_pos[:, rows], key_pos[:, keys], window
        )
        if v is None or grad_v is None:
            grad_p = grad[:, :, rows, keys]
        else:
            grad_p, moved = of_mixture(pattern, v[:, keys], grad[:, rows])
            grad_v[:, keys] += moved
        grad_s, of_sinks = of_softmax(pattern, sink, grad_p, grad_sink[:, :, rows])
        grad_q[:, rows], moved = _of_dots(by_head(part, kv_heads), near, grad_s, heads)
        grad_k[:, keys] += moved
        grad_sinks += of_sinks
    return Gradients(grad_q, grad_k, grad_v, grad_sinks)
