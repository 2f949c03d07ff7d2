"""Standing committee: experts that (nearly) every domain leans on.

A domain's top set in a layer is the `size` experts that carry most of its routing mass, mass being
the weights by which outputs are multiplied (softmax over the kept k). The committee holds experts
in the top set of at least `nearly` of the domains whose share of the mass is above 1 / E with
certainty (lower bound). After CommitteeAudit (2601.03425), of which only the summary was read: the
thresholds are ours and are arguments.

    jaccard   mean over pairs of domains of |A ∩ B| / |A ∪ B| of their top sets
    chance    of a jaccard: its mean for random sets of that size
"""

from __future__ import annotations

from itertools import combinations
from math import comb
from typing import NamedTuple

import numpy as np

from gptoss_workbench.routing.load import shares
from gptoss_workbench.routing.ratios import notes, selected, spoken
from gptoss_workbench.routing.resample import Draws, draws
from gptoss_workbench.routing.trace import RoutingTrace
from gptoss_workbench.table import Table

SOURCE = "Top sets of routing mass over domains, after CommitteeAudit (2601.03425)"


class Committee(NamedTuple):
    """Who sits on it, and how much it carries."""

    members: Table
    """A row a member; none where no layer has a committee."""
    layers: Table
    """A row a layer."""


def committee(
    routing: RoutingTrace,
    *,
    by: str = "label",
    size: int | None = None,
    nearly: float = 0.9,
    of: str = "weights",
    headers: bool = False,
    resamples: int = 200,
    seed: int = 0,
) -> Committee:
    """Find the experts that stand in the top set of nearly all groups.

    Args:
        size: of a top set; None is k.
        nearly: share of the groups whose top set must hold a member.
        of: the mass: "weights", "choices" or "probabilities" (over all E).
    """
    routing = selected(routing, headers)
    found = draws(routing, by, of=of, resamples=resamples, seed=seed)
    kept = spoken(found.names, found.tokens)
    size, experts = size or routing.k, routing.n_experts
    if len(kept) < 2 or not 0 < size < experts:
        raise ValueError(
            f"committee: needs two groups and 0 < size < {experts}; got {len(kept)} group(s) by "
            f"{by!r} and size {size}"
        )
    top = top_sets(found.total[kept], size)  # [group, layer, expert]
    often = top.mean(0)
    mass = shares(found.total.sum(0))  # [layer, expert]
    low, high = found.bounds(lambda sums: shares(sums.sum(-3)), 1.0)
    seated = (often >= nearly - 1e-12) & (low > 1 / experts)
    about = {
        "source": SOURCE,
        "notes": (
            f"groups: {', '.join(found.names[i] for i in kept)}; top sets of {size}; "
            f"in {nearly:.0%} of them; mass of {of}",
            *notes(headers),
        ),
        "provenance": dict(routing.provenance) | {"size": size, "nearly": nearly, "seed": seed},
    }
    layer, expert = seated.nonzero()
    members = Table(
        {
            "layer": np.array(routing.layers, dtype=np.int64)[layer],
            "expert": expert,
            "groups": often[seated],
            "mass": mass[seated],
            "chance": np.full(len(layer), 1 / experts),
            "low": low[seated],
            "high": high[seated],
        },
        title="Standing committee",
        units={"groups": "share of groups", "mass": "of the layer's mass"},
        **about,
    )
    return Committee(members, _layers(routing, found, seated, top, size, about))


def _layers(
    routing: RoutingTrace,
    found: Draws,
    seated: np.ndarray,
    top: np.ndarray,
    size: int,
    about: dict,
) -> Table:
    """What each layer's committee carries, and how alike the groups' top sets are."""
    low, high = found.bounds(lambda sums: (shares(sums.sum(-3)) * seated).sum(-1), 1.0)
    count = seated.sum(-1)
    return Table(
        {
            "layer": np.array(routing.layers),
            "members": count,
            "mass": (shares(found.total.sum(0)) * seated).sum(-1),
            "chance": count / routing.n_experts,
            "low": low,
            "high": high,
            "jaccard": jaccard(top),
            "chance_jaccard": np.full(len(count), random_jaccard(size, routing.n_experts)),
            "n": np.full(len(count), found.tokens.sum()),
        },
        title="Routing mass of the standing committee",
        units={"mass": "of the layer's mass", "n": "tokens"},
        **about,
    )


def top_sets(sums: np.ndarray, size: int) -> np.ndarray:
    """bool [..., expert]: the `size` experts with the largest sums, lower numbers first."""
    order = np.argsort(-sums, -1, kind="stable")[..., :size]
    out = np.zeros(sums.shape, bool)
    np.put_along_axis(out, order, True, axis=-1)
    return out


def jaccard(sets: np.ndarray) -> np.ndarray:
    """Mean Jaccard index over pairs of groups: [group, layer, expert] to [layer]."""
    pairs = [(a & b).sum(-1) / np.maximum((a | b).sum(-1), 1) for a, b in combinations(sets, 2)]
    return np.mean(pairs, axis=0)


def random_jaccard(size: int, experts: int) -> float:
    """Mean Jaccard index of two random sets (hypergeometric)."""
    ways = [comb(size, i) * comb(experts - size, size - i) for i in range(size + 1)]
    return sum(w * i / (2 * size - i) for i, w in enumerate(ways)) / comb(experts, size)
