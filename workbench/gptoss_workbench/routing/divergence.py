"""Routing divergence: how differently two kinds of text use a layer's experts.

With P_g the distribution of group g's choices over a layer's experts (its tokens pooled):

    JS          = H(mean_g P_g) - mean_g H(P_g)       bits, 0 ... log2(groups)
    normalised  = JS / H(mean_g P_g)                  0 ... 1

JS is log2(groups) where no expert is shared and 0 where all groups spread alike. Dividing by the
entropy of the pooled distribution makes layers comparable that use few or many experts ("entropy-
normalised", after 2510.04694, whose text gives softmax weights averaged over a sequence: that is
of="probabilities"; the normaliser here is the JS's own upper bound). JS is biased upwards on few
tokens: chance is its mean when groups are dealt to the same prompts at random.
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import numpy as np

from gptoss_workbench.intervals import around
from gptoss_workbench.routing.load import entropy, shares
from gptoss_workbench.routing.ratios import clusters, notes, selected, spoken
from gptoss_workbench.routing.resample import draws
from gptoss_workbench.routing.trace import RoutingTrace
from gptoss_workbench.table import Table

SOURCE = "JS = H(mean P_g) - mean H(P_g), log2; entropy-normalised after 2510.04694"


class Divergence(NamedTuple):
    """Routing divergence over all groups, and between any two."""

    layers: Table
    """A row a layer."""
    pairs: Table
    """A row a layer and pair of groups."""


def divergence(
    routing: RoutingTrace,
    *,
    by: str = "label",
    of: str = "choices",
    headers: bool = False,
    resamples: int = 200,
    permutations: int = 100,
    seed: int = 0,
) -> Divergence:
    """Jensen-Shannon divergence between groups' expert distributions, a row a layer.

    Args:
        of: "choices", "weights" (softmax over the kept k) or "probabilities" (over all E; the
            trace must have kept logits).
        resamples: of prompts, for the bounds.
        permutations: of groups over prompts, for chance and p.
    """
    routing = selected(routing, headers)
    found = draws(routing, by, of=of, resamples=resamples, seed=seed)
    kept = spoken(found.names, found.tokens)
    if len(kept) < 2:
        raise ValueError(f"divergence: needs two groups by {by!r}; got {found.names[kept[0]]!r}")
    null = permuted(routing, by, kept, of=of, permutations=permutations, seed=seed)
    total, drawn = found.total[kept], found.drawn[:, kept]
    about = {
        "source": SOURCE,
        "notes": (f"groups: {', '.join(found.names[i] for i in kept)}; of {of}", *notes(headers)),
        "provenance": dict(routing.provenance) | {"seed": seed, "of": of},
    }
    lone = found.prompts[kept] < 2
    layers = _row(total, drawn, null, lone) | {
        "n": np.full(len(routing.layers), found.tokens.sum())
    }
    pairs = list(combinations(range(len(kept)), 2))
    parts = [
        _row(total[both], drawn[:, both], null[:, both], lone[both]) for both in map(list, pairs)
    ]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    names, size = np.array(found.names)[kept], len(routing.layers)
    ends = {
        "a": np.repeat([names[a] for a, _ in pairs], size),
        "b": np.repeat([names[b] for _, b in pairs], size),
    }
    numbers = np.array(routing.layers)
    units = {name: "bits" for name in ("js", "low", "high", "chance")}
    return Divergence(
        Table({"layer": numbers} | layers, f"Routing divergence by {by}", units=units, **about),
        Table(
            {"layer": np.tile(numbers, len(pairs))} | ends | columns,
            f"Routing divergence between pairs, by {by}",
            units=units,
            **about,
        ),
    )


def js(counts: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence of groups: [..., group, layer, expert] to [..., layer], bits.

    A group that has no tokens in a draw is left out of its mean.
    """
    p = shares(counts)
    there = p.sum(-1, keepdims=True) > 0  # [..., group, layer, 1]
    groups = np.maximum(there.sum(-3), 1)  # [..., layer, 1]
    pooled = (p * there).sum(-3) / groups
    each = (entropy(p) * there[..., 0]).sum(-2) / groups[..., 0]
    return np.maximum(entropy(pooled) - each, 0.0)


def normalised(counts: np.ndarray) -> np.ndarray:
    """JS over the entropy of the pooled distribution; 0 where that is 0."""
    top = entropy(shares(counts).mean(-3))
    return np.divide(js(counts), top, out=np.zeros_like(top), where=top > 0)


def permuted(
    routing: RoutingTrace, by: str, kept: list[int], *, of: str, permutations: int, seed: int
) -> np.ndarray:
    """Sums [permutation, group, layer, expert] when groups are dealt out anew over prompts.

    What is dealt is a prompt's part in a group, so a prompt with several voices has several.
    """
    groups = np.concatenate([each.group for each in clusters(routing, by, of)])
    places = np.searchsorted(kept, groups)
    rng = np.random.default_rng(seed)
    dealt = np.stack([rng.permutation(places) for _ in range(permutations)])
    out = np.zeros((permutations, len(kept), len(routing.layers), routing.n_experts))
    at = 0
    for each in clusters(routing, by, of):
        flat = each.sums.reshape(len(each.sums), -1)
        now = dealt[:, at : at + len(flat)]
        member = (now[:, None] == np.arange(len(kept))[:, None]).astype(float)
        out += (member @ flat).reshape(out.shape)
        at += len(flat)
    return out


def _row(
    total: np.ndarray, drawn: np.ndarray, null: np.ndarray, lone: np.ndarray
) -> dict[str, np.ndarray]:
    """Columns of one set of groups, a row a layer; no bounds where a group is a `lone` prompt."""
    value, chance = js(total), js(null)
    low, high = around(value, np.where(lone.any(), np.nan, js(drawn)), 0.0)
    return {
        "js": value,
        "chance": chance.mean(0),
        "low": low,
        "high": high,
        "p": (1 + (chance >= value - 1e-12).sum(0)) / (1 + len(chance)),
        "normalised": normalised(total),
    }
