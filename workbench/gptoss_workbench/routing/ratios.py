"""Shares of choices, summed prompt by prompt as a corpus streams by, with their intervals.

    share = Σ hits / Σ of        over prompts i
    var   = m / (m - 1) · Σ (hits_i - share · of_i)² / (Σ of)²       m prompts
    n_eff = share (1 - share) / var

The interval is Wilson's for n_eff trials: tokens of one prompt depend on each other, so a prompt of
a hundred tokens that all go one way counts as one, not as a hundred (Kish's design effect; Wilson
with an effective sample size: Korn & Graubard 1998). Where no prompt differs, n_eff is the number
of prompts if the share is 0 or 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from gptoss_workbench.intervals import wilson
from gptoss_workbench.routing.record import Record
from gptoss_workbench.routing.select import content
from gptoss_workbench.routing.trace import RoutingTrace

OF = ("choices", "weights", "probabilities")
"""What is summed over tokens: 1 for each chosen expert; its weight (softmax over the kept k);
the softmax over all E of the router's logits, which the trace must have kept."""
PIECE = 1 << 22
"""Numbers held at a time."""
HEADERS = "markers and header tokens left out (headers=True counts them)"


class Clusters(NamedTuple):
    """Some prompts' sums, one row a prompt and group."""

    prompt: np.ndarray
    """int64 [cluster], number in the corpus"""
    group: np.ndarray
    """int64 [cluster]"""
    tokens: np.ndarray
    """int64 [cluster]"""
    sums: np.ndarray
    """float64 [cluster, layer, expert]"""


def selected(routing: RoutingTrace, headers: bool) -> RoutingTrace:
    """The trace a metric works on, and what to say about it."""
    return routing if headers else content(routing)


def notes(headers: bool) -> tuple[str, ...]:
    """What a table says of its selection."""
    return () if headers else (HEADERS,)


def clusters(routing: RoutingTrace, by: str | None, of: str = "choices") -> Iterator[Clusters]:
    """Sum over every prompt's tokens in each group, a bounded number of prompts at a time."""
    if of not in OF:
        raise ValueError(f"of= is one of {', '.join(OF)}; got {of!r}")
    names, group_of = routing.groups(by)
    layers, experts = len(routing.layers), routing.n_experts
    for record in whole_prompts(routing, len(names) * layers * experts):
        group = group_of(record)
        record, group = record.at(group >= 0), group[group >= 0]
        key = record.prompt.astype(np.int64) * len(names) + group
        keys, row, tokens = np.unique(key, return_inverse=True, return_counts=True)
        shape = (len(keys), layers, experts)
        sums = _sums(record, row, shape, of)
        yield Clusters(keys // len(names), keys % len(names), tokens, sums)


def whole_prompts(routing: RoutingTrace, per_prompt: int) -> Iterator[Record]:
    """The selected tokens in pieces that end with a prompt: `per_prompt` numbers a prompt fit."""
    most = max(1, PIECE // per_prompt)
    for record in routing.chunks():
        starts = np.flatnonzero(np.diff(record.prompt, prepend=-1))[::most].tolist()
        for a, b in zip(starts, [*starts[1:], len(record.prompt)], strict=True):
            yield record if b - a == len(record.prompt) else record.at(slice(a, b))


def _sums(record: Record, row: np.ndarray, shape: tuple[int, int, int], of: str) -> np.ndarray:
    if of == "probabilities":
        out = np.zeros(shape)
        np.add.at(out, row, probabilities(record))
        return out
    place = (row[:, None] * shape[1] + np.arange(shape[1]))[..., None] * shape[2] + record.experts
    weights = record.weights.astype(np.float64).ravel() if of == "weights" else None
    size = shape[0] * shape[1] * shape[2]
    return np.bincount(place.ravel(), weights, size).reshape(shape).astype(float)


def probabilities(record: Record) -> np.ndarray:
    """Softmax over all E of the router's logits, float64 [token, layer, expert]."""
    if record.logits is None:
        raise ValueError("this trace has no router logits; give keep=('logits',) to trace_routing")
    logits = record.logits.astype(np.float64)
    raised = np.exp(logits - logits.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def has_logits(routing: RoutingTrace) -> bool:
    """Whether the router's logits were kept."""
    first = next(iter(routing.shards), None)
    return first is not None and first().logits is not None


class Ratio:
    """Σ hits / Σ of for each group, gathered cluster by cluster."""

    def __init__(self, groups: int, hits: tuple[int, ...], of: tuple[int, ...]):
        """`hits` and `of` are shapes; `of` broadcasts against `hits`."""
        self.hits, self.of = np.zeros((groups, *hits)), np.zeros((groups, *of))
        self.squares, self.crossed = np.zeros_like(self.hits), np.zeros_like(self.hits)
        self.of_squares, self.prompts = np.zeros_like(self.of), np.zeros_like(self.of)

    def add(self, group: np.ndarray, hits: np.ndarray, of: np.ndarray) -> None:
        """Add clusters: group [cluster], hits [cluster, ...], of [cluster, ...]."""
        for g in np.unique(group):
            h, n = hits[group == g], of[group == g]
            self.hits[g] += h.sum(0)
            self.of[g] += n.sum(0)
            self.squares[g] += (h * h).sum(0)
            self.crossed[g] += (h * n).sum(0)
            self.of_squares[g] += (n * n).sum(0)
            self.prompts[g] += (n > 0).sum(0)

    @property
    def share(self) -> np.ndarray:
        """[group, ...]; 0 where nothing was counted."""
        return self.hits / np.where(self.of > 0, self.of, 1)

    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        """95 % bounds of the share, clusters being what varies."""
        r, n, m = self.share, self.of, self.prompts
        spread = np.maximum(self.squares - 2 * r * self.crossed + r * r * self.of_squares, 0)
        spread = np.where(spread > 1e-12 * self.squares, spread, 0)
        variance = spread / np.where(n > 0, n, 1) ** 2 * m / np.maximum(m - 1, 1)
        inner = r * (1 - r)
        known = np.divide(inner, variance, out=np.full(r.shape, np.inf), where=variance > 0)
        trials = np.where((inner <= 1e-12) | (m < 2), m, np.minimum(known, np.maximum(n, m)))
        return wilson(r * trials, trials)


def spoken(names: list[str], tokens: np.ndarray) -> list[int]:
    """Places of the groups that have tokens; raises when none has."""
    found = [i for i in range(len(names)) if tokens[i] > 0]
    if not found:
        raise ValueError(
            "the selection holds no token outside headers; loosen where(...), or headers=True"
        )
    return found
