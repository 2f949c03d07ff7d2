"""Domain and vocabulary specialisation: what an expert is chosen for.

    domain       N_{e,D} / N_D    share of domain D's tokens that go to expert e
    vocabulary   N_{x,e} / N_x    share of token id x's occurrences that go to expert e

Both from OLMoE (2409.02060), over all k chosen experts; by chance k / E. For one domain the shares
of a layer sum to k. That experts follow domains says little by itself, since routers are linear in
the hidden state (2604.09780): `specialisation_baseline` reads the same labels from hidden states.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gptoss_workbench.harmony.voices import VOICES
from gptoss_workbench.intervals import wilson
from gptoss_workbench.routing.probe import cross_validated, majority
from gptoss_workbench.routing.ratios import Ratio, clusters, notes, selected, spoken
from gptoss_workbench.routing.trace import RoutingTrace
from gptoss_workbench.table import Table

SOURCE = "N_{e,D} / N_D over all k chosen experts (OLMoE, 2409.02060); chance k / E"


def specialisation(
    routing: RoutingTrace, *, by: str | None = "label", headers: bool = False
) -> Table:
    """Share of each group's tokens that go to each expert: a row a group, layer and expert."""
    routing = selected(routing, headers)
    names, _ = routing.groups(by)
    layers, experts = len(routing.layers), routing.n_experts
    ratio, tokens = Ratio(len(names), (layers, experts), (1, 1)), np.zeros(len(names), np.int64)
    for each in clusters(routing, by):
        ratio.add(each.group, each.sums, each.tokens[:, None, None].astype(float))
        tokens += np.bincount(each.group, each.tokens, len(names)).astype(np.int64)
    kept = spoken(names, tokens)
    low, high = ratio.interval()
    rows = layers * experts
    return Table(
        {
            "group": np.repeat(np.array(names)[kept], rows),
            "layer": np.tile(np.repeat(routing.layers, experts), len(kept)),
            "expert": np.tile(np.arange(experts), layers * len(kept)),
            "share": ratio.share[kept].ravel(),
            "chance": np.full(len(kept) * rows, routing.k / experts),
            "low": low[kept].ravel(),
            "high": high[kept].ravel(),
            "n": np.repeat(tokens[kept], rows),
        },
        title=f"Share of tokens that go to each expert, by {by or 'nothing'}",
        source=SOURCE,
        units={"share": "of the group's tokens", "n": "tokens"},
        notes=(f"a layer's shares sum to k = {routing.k}", *notes(headers)),
        provenance=routing.provenance,
    )


def specialisation_baseline(
    routing: RoutingTrace,
    hidden: Mapping[int, np.ndarray],
    *,
    by: str = "label",
    headers: bool = False,
    most: int = 4000,
    folds: int = 5,
    seed: int = 0,
) -> Table:
    """How well a linear probe reads each token's group from its experts, and from hidden states.

    Args:
        hidden: layer -> [token, d_model], rows as in `routing.record()` (headers included).
        most: tokens drawn at random, seeded; a prompt's tokens stay in one fold.
    """
    record = routing.record()
    wrong = {layer: h.shape for layer, h in hidden.items() if len(h) != len(record.token)}
    if wrong or not hidden:
        raise ValueError(
            f"specialisation_baseline: hidden= has a row for each of the {len(record.token)} "
            f"tokens of routing.record(), in its order; got {wrong or 'nothing'}"
        )
    names, group_of = routing.groups(by)
    keep = _drawn(routing, record.voice, headers, most, seed)
    y, prompts = group_of(record)[keep], record.prompt[keep]
    rows = []
    for layer, states in hidden.items():
        experts = one_hot(record.experts[keep, routing.layers.index(layer)], routing.n_experts)
        for name, x in (("experts", experts), ("hidden", np.asarray(states)[keep])):
            guess = cross_validated(x, y, groups=prompts, folds=folds, seed=seed)
            rows.append((layer, name, int((guess == y).sum())))
    hits = np.array([row[2] for row in rows])
    low, high = wilson(hits, np.full(len(hits), len(y)))
    return Table(
        {
            "layer": np.array([row[0] for row in rows]),
            "read from": np.array([row[1] for row in rows]),
            "accuracy": hits / len(y),
            "chance": np.full(len(rows), majority(y)),
            "low": low,
            "high": high,
            "n": np.full(len(rows), len(y)),
        },
        title=f"Linear probe for {by}: from a layer's expert choice, and from its hidden state",
        source="Multinomial logistic regression, folds by prompt; why it is shown: 2604.09780",
        units={"n": "tokens"},
        notes=(
            "chance is the share of the most common group",
            f"groups: {', '.join(names[i] for i in np.unique(y))}",
            "the interval takes tokens as independent",
            *notes(headers),
        ),
        provenance=dict(routing.provenance) | {"seed": seed, "folds": folds},
    )


def one_hot(chosen: np.ndarray, n_experts: int) -> np.ndarray:
    """float32 [token, expert], 1 where chosen [token, k] names the expert."""
    out = np.zeros((len(chosen), n_experts), np.float32)
    np.put_along_axis(out, chosen.astype(np.int64), 1, axis=1)
    return out


def _drawn(
    routing: RoutingTrace, voice: np.ndarray, headers: bool, most: int, seed: int
) -> np.ndarray:
    """Places of at most so many tokens, in order."""
    at = np.arange(len(voice)) if headers else np.flatnonzero(voice != VOICES.index("header"))
    if len(at) <= most:
        return at
    return np.sort(np.random.default_rng(seed).choice(at, most, replace=False))
