"""Counts of each prompt: what intervals, resamples and contrasts are made of.

Tokens of one prompt depend on each other, so the prompt is the unit that is drawn again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gptoss_workbench.routing.record import Record
from gptoss_workbench.routing.trace import RoutingTrace

Weigh = Callable[[Record], np.ndarray]
"""Record -> what each choice adds, [token, layer, k]"""


class PromptCounts(NamedTuple):
    """One row a prompt, in corpus order; only prompts with a selected token."""

    prompts: np.ndarray
    """int64 [prompt], numbers in the corpus"""
    tokens: np.ndarray
    """float64 [prompt], selected tokens"""
    sums: np.ndarray
    """float64 [prompt, layer, expert], choices counted, or summed by what they were weighed with"""


def prompt_counts(routing: RoutingTrace, *, weigh: Weigh | None = None) -> PromptCounts:
    """Sum over each prompt's tokens of every expert's choices; each counts 1, or `weigh(record)`.

    Raises ValueError when no token is selected.
    """
    found = [_chunk(routing, record, weigh) for record in routing.chunks()]
    if not found:
        raise ValueError("routing: the selection holds no token; loosen where(...)")
    return PromptCounts(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def _chunk(routing: RoutingTrace, record: Record, weigh: Weigh | None) -> PromptCounts:
    prompts, row = np.unique(record.prompt, return_inverse=True)
    layers, experts = len(routing.layers), routing.n_experts
    place = (row[:, None] * layers + np.arange(layers))[..., None] * experts + record.experts
    values = None if weigh is None else np.asarray(weigh(record), np.float64).ravel()
    sums = np.bincount(place.ravel(), values, len(prompts) * layers * experts)
    tokens = np.bincount(row, minlength=len(prompts)).astype(float)
    return PromptCounts(
        prompts.astype(np.int64), tokens, sums.reshape(-1, layers, experts).astype(float)
    )


def needs(record: Record, column: str) -> np.ndarray:
    """A column that is only kept when asked for, as float64.

    Raises ValueError saying how to trace it.
    """
    values = getattr(record, column)
    if values is None:
        raise ValueError(
            f"this RoutingTrace has no {column}: trace them with "
            f"trace_routing(..., keep=({column!r},))"
        )
    return values.astype(np.float64)


def layer_expert(routing: RoutingTrace) -> dict[str, np.ndarray]:
    """Columns `layer` and `expert`, one row for each, in order."""
    layers, experts = len(routing.layers), routing.n_experts
    return {
        "layer": np.repeat(np.array(routing.layers), experts),
        "expert": np.tile(np.arange(experts), layers),
    }
