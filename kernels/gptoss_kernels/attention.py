"""Attention with grouped queries, sinks and an optional sliding window.

    s_j     = q · k_j / sqrt(d_head)                    for visible keys j
    p_j     = exp(s_j) / (Σ exp(s_k) + exp(sink_head))  a row of p sums to less than 1
    sink    = exp(sink_head) / (the same denominator)   so Σ p_j + sink = 1
    z       = Σ p_j v_j

A key is visible when it is real, not in the future, and (sliding layers) fewer than `window`
positions back, the query's own position included. A query that sees no key gives z = 0.
Query head h reads key/value head h // (heads / kv_heads).
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gptoss_kernels.rms_norm import Look

TILE = 1 << 23
"""Scores computed at a time (32 MiB of float32); the tiling never depends on what is observed."""


class AttentionTap(NamedTuple):
    """Where a caller may look into `attention`; None costs nothing."""

    scores: Look | None = None
    """[batch, head, query, key] float32 before the softmax; hidden keys hold float32's minimum"""
    pattern: Look | None = None
    """[batch, head, query, key] float32; rows sum to 1 - sink"""
    sink: Look | None = None
    """[batch, head, query] float32; what the sink absorbs (read-only)"""


def attention(
    q: Float[Tensor, "batch query head d_head"],
    k: Float[Tensor, "batch key kv_head d_head"],
    v: Float[Tensor, "batch key kv_head d_head"],
    sinks: Float[Tensor, " head"],
    query_pos: Int[Tensor, "batch query"],
    key_pos: Int[Tensor, "batch key"],
    *,
    window: int | None = None,
    tap: AttentionTap | None = None,
) -> Float[Tensor, "batch query head d_head"]:
    """Mix the values each query sees; positions below 0 mark padding. Same dtype as `q`."""
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"attention: {q.shape[2]} query heads over {k.shape[2]} key/value heads")
    tap = tap or AttentionTap()
    whole = tap.scores is not None or tap.pattern is not None
    spans = _spans(q.shape[1], q.shape[0] * q.shape[2] * k.shape[1])
    grouped, keys, values = _group(q, k), k.float().permute(0, 2, 3, 1), v.float().transpose(1, 2)

    def score(rows: slice) -> Tensor:
        hidden = _hidden(query_pos[:, rows], key_pos, window)
        return _scores(grouped[:, :, :, rows], keys, hidden)

    if whole:
        scores = torch.cat([score(rows) for rows in spans], 2)  # [batch, head, query, key]
        scores = tap.scores(scores) if tap.scores else scores
        soft = [_softmax(scores[:, :, rows], sinks) for rows in spans]
    else:
        soft = [_softmax(score(rows), sinks) for rows in spans]
    if tap.sink:
        tap.sink(torch.cat([sink for _, sink in soft], 2))
    patterns = [pattern for pattern, _ in soft]
    if tap.pattern:
        pattern = tap.pattern(torch.cat(patterns, 2))
        patterns = [pattern[:, :, rows] for rows in spans]
    z = torch.cat([_mix(part, values) for part in patterns], 1)
    return z.to(q.dtype)


def _spans(n_query: int, per_query: int) -> list[slice]:
    step = max(1, TILE // max(1, per_query))
    return [slice(i, min(i + step, n_query)) for i in range(0, n_query, step)]


def _group(q: Tensor, k: Tensor) -> Tensor:
    batch, n_query, heads, d_head = q.shape
    split = q.float().reshape(batch, n_query, k.shape[2], heads // k.shape[2], d_head)
    return split.permute(0, 2, 3, 1, 4)  # [batch, kv_head, group, query, d_head]


def _hidden(
    query_pos: Tensor, key_pos: Tensor, window: int | None
) -> Bool[Tensor, "batch query key"]:
    ahead = key_pos[:, None, :] > query_pos[:, :, None]
    hidden = ahead | (key_pos < 0)[:, None, :]
    if window is not None:
        hidden = hidden | (query_pos[:, :, None] - key_pos[:, None, :] >= window)
    return hidden


def _scores(q: Tensor, keys: Tensor, hidden: Tensor) -> Tensor:
    scores = (q @ keys[:, :, None]) / math.sqrt(q.shape[-1])
    scores = scores.masked_fill(hidden[:, None, None], torch.finfo(torch.float32).min)
    return scores.flatten(1, 2)  # [batch, head, query, key]


def _softmax(scores: Tensor, sinks: Tensor) -> tuple[Tensor, Tensor]:
    logit = sinks.float()[None, :, None, None]
    top = torch.maximum(scores.detach().amax(-1, keepdim=True), logit)
    weight, absorbed = (scores - top).exp(), (logit - top).exp()
    total = weight.sum(-1, keepdim=True) + absorbed
    return weight / total, (absorbed / total)[..., 0]


def _mix(pattern: Tensor, values: Tensor) -> Tensor:
    grouped = pattern.unflatten(1, (values.shape[1], -1))  # [batch, kv_head, group, query, key]
    z = grouped @ values[:, :, None]
    return z.flatten(1, 2).transpose(1, 2)  # [batch, query, head, d_head]
