"""The attention of one layer in one row as a view reads it: a head at a time, never the cube.

A page gets the square root of each weight in 256 steps, and of the query x key square only the
half that a query can see: query q has keys 0 to q, one query after the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .packing import quantise
from .transcript import Transcript

if TYPE_CHECKING:
    from gptoss_workbench.trace import Trace

THUMB = 46
"""Cells on a side of a head's small picture."""


class Pattern(NamedTuple):
    """One layer's attention in one row, pads left out."""

    layer: int
    full: Tensor
    """[head, query, key], as the trace holds it."""
    sinks: Tensor | None
    """[head, query], what the sink absorbs; None if it was not recorded."""
    columns: list[int]
    """The queries shown, as places of the trace's tensors."""
    keys: list[int]
    """The keys shown, as places in the prompt."""
    cut: bool
    """The trace was cut from a longer prompt: some weight lies on keys that are not shown."""
    window: int | None
    """Keys a query sees, itself included; None if it sees all before it."""

    @property
    def n_heads(self) -> int:
        """Heads of the layer."""
        return self.full.shape[0]

    def weights(self, head: int) -> Tensor:
        """[query, key] of one head in float32, over the tokens shown."""
        return self.full[head][_span(self.columns)][:, _span(self.keys)].float()

    def outside(self, head: int) -> np.ndarray:
        """[lead, query]: what goes to the sink and, of a cut trace, to keys that are not shown."""
        rows = _span(self.columns)
        total = self.full[head][rows].float().sum(-1)
        known = None if self.sinks is None else self.sinks[head][rows].float()
        lead = [(1 - total).clamp(0, 1) if known is None else known]
        if self.cut:
            lead.append((total - self.weights(head).sum(-1)).clamp(0, 1))
        return torch.stack(lead).numpy()


class Summary(NamedTuple):
    """What a head does on average over its queries."""

    sink: float
    """Share that the sink takes."""
    entropy: float
    """Bits, of the weights on keys as they are."""
    distance: float
    """Tokens back, weighted by the weights on keys."""


class Face(NamedTuple):
    """What a page shows of a head before its weights; small, so that it can be kept."""

    summary: Summary
    lead: np.ndarray
    """[lead, query], see `Pattern.outside`, in 256 steps."""
    thumb: np.ndarray
    """[cell, cell]: the largest weight in each cell of the small picture, in 256 steps."""


def read_pattern(trace: Trace, layer: int | None, row: int, story: Transcript) -> Pattern:
    """Find one layer's pattern in a trace."""
    layer = _layer(trace, layer)
    sinks = trace.activations.get(f"blocks.{layer}.attn.hook_sink")
    sliding = trace.config["layer_types"][layer] == "sliding_attention"
    return Pattern(
        layer=layer,
        full=trace.activations[f"blocks.{layer}.attn.hook_pattern"][row],
        sinks=None if sinks is None else sinks[row],
        columns=story.columns,
        keys=story.positions,
        cut=trace.context is not None,
        window=int(trace.config["sliding_window"]) if sliding else None,
    )


def read_face(pattern: Pattern, head: int) -> Face:
    """Measure one head and draw it small."""
    weights, lead = pattern.weights(head), pattern.outside(head)
    entropy = torch.special.entr(weights).sum(-1).mean() / np.log(2)
    summary = Summary(float(lead[0].mean()), float(entropy), _distance(weights, pattern.keys))
    thumb = quantise(_thumb(weights.numpy()), root=True)
    return Face(summary, quantise(lead, root=True), thumb)


def triangle(pattern: Pattern, head: int) -> np.ndarray:
    """The weights of one head as the page gets them."""
    weights = pattern.weights(head).numpy()
    return quantise(weights[np.tri(len(weights), dtype=bool)], root=True)


def _distance(weights: Tensor, keys: list[int]) -> float:
    """Tokens back to the keys, weighted, on average over the queries."""
    mass = weights.sum(-1)
    places = torch.tensor(keys, dtype=torch.float32)
    back = (mass * places - weights @ places) / mass.clamp(min=1e-12)
    return float(back.mean())


def _thumb(weights: np.ndarray) -> np.ndarray:
    """[cell, cell]: the largest weight in each cell."""
    n = len(weights)
    side = min(n, THUMB)
    starts = -(-np.arange(side) * n // side)
    return np.maximum.reduceat(np.maximum.reduceat(weights, starts, axis=0), starts, axis=1)


def _span(places: list[int]) -> slice | list[int]:
    """Places that follow one another as a slice, which reads them without a copy."""
    whole = list(range(places[0], places[-1] + 1))
    return slice(places[0], places[-1] + 1) if places == whole else places


def _layer(trace: Trace, layer: int | None) -> int:
    """The layer asked for, else the first whose pattern the trace has."""
    names = [f"blocks.{i}.attn.hook_pattern" for i in range(trace.config["num_hidden_layers"])]
    held = [i for i, name in enumerate(names) if name in trace.activations]
    if layer is None and held:
        return held[0]
    if layer not in held:
        wanted = f"blocks.{0 if layer is None else layer}.attn.hook_pattern"
        raise ValueError(
            f"views.attention: the trace has the patterns of layers {held}, not of layer {layer}; "
            f"make it with names_filter=['{wanted}']"
        )
    return layer
