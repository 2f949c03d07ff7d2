"""How evenly a layer's experts are used: CV, Gini, entropy, dead experts, auxiliary loss.

With f_e the share of all choices that fall on expert e (Σ f_e = 1) and p_e its mean router
probability:

    cv       = std(f) / mean(f)                               0 when balanced
    gini     = Σ_i (2i - E - 1) f_(i) / E   f sorted          0 when balanced
    entropy  = -Σ f_e log2 f_e                                log2 E when balanced
    aux loss = E · Σ f_e · p_e      (Switch 2101.03961)       1 when balanced, E / k when every
                                                              token goes to the same k experts

"Router probability" is the softmax over all E where the trace kept the router's logits; otherwise
the weights, which are the softmax over the kept k. The table says which.
"""

from __future__ import annotations

import numpy as np

from gptoss_workbench.routing.ratios import has_logits, notes, selected, spoken
from gptoss_workbench.routing.resample import Draws, draws
from gptoss_workbench.routing.trace import RoutingTrace
from gptoss_workbench.table import Table

P_OF = {"probabilities": "softmax over all E", "weights": "softmax over the kept k"}


def load_balance(
    routing: RoutingTrace,
    *,
    by: str | None = "channel",
    headers: bool = False,
    resamples: int = 200,
    seed: int = 0,
) -> Table:
    """Balance of every group and layer.

    Bounds come from prompts drawn again; they are NaN for a group with fewer than two.
    """
    routing = selected(routing, headers)
    of = "probabilities" if has_logits(routing) else "weights"
    hits = draws(routing, by, resamples=resamples, seed=seed)
    mass = draws(routing, by, of=of, resamples=resamples, seed=seed)
    kept = spoken(hits.names, hits.tokens)
    n, p = np.repeat(hits.tokens[kept], len(routing.layers)), routing.k / routing.n_experts
    columns = {
        "group": np.repeat(np.array(hits.names)[kept], len(routing.layers)),
        "layer": np.tile(routing.layers, len(kept)),
    }
    most = {"gini": 1.0, "entropy": float(np.log2(routing.n_experts))}
    for name, statistic in (("cv", cv), ("gini", gini), ("entropy", entropy)):
        value, drawn = statistic(hits.total), statistic(hits.drawn)
        columns |= _bounded(name, name, value, drawn, hits, kept, most.get(name, np.inf))
    value, drawn = aux_loss(hits.total, mass.total), aux_loss(hits.drawn, mass.drawn)
    columns |= _bounded("aux_loss", "aux", value, drawn, hits, kept)
    columns["dead"] = (hits.total[kept] == 0).sum(-1).ravel()
    columns["chance_cv"] = np.sqrt((1 - p) / (p * n))
    columns["n"] = n
    return Table(
        columns,
        title="Load of the experts" + (f", by {by}" if by else ""),
        source="CV, Gini, entropy of N_e; aux = E Σ f_e p_e (Switch, 2101.03961), Σ f_e = 1",
        units={"entropy": "bits", "dead": f"of {routing.n_experts} experts", "n": "tokens"},
        notes=(
            f"p_e: {P_OF[of]}",
            "chance_cv is what a balanced router shows on n independent tokens",
            *notes(headers),
        ),
        provenance=dict(routing.provenance) | {"seed": seed, "resamples": resamples},
    )


def shares(counts: np.ndarray) -> np.ndarray:
    """Counts [..., expert] as shares that sum to 1; zeros where nothing was counted."""
    total = counts.sum(-1, keepdims=True)
    return np.divide(counts, total, out=np.zeros_like(counts, dtype=float), where=total > 0)


def cv(counts: np.ndarray) -> np.ndarray:
    """Coefficient of variation over experts."""
    f = shares(counts)
    return f.std(-1) * f.shape[-1]


def gini(counts: np.ndarray) -> np.ndarray:
    """Gini coefficient over experts: 0 balanced, 1 - 1/E all on one."""
    f = np.sort(shares(counts), -1)
    size = f.shape[-1]
    return (f * (2 * np.arange(1, size + 1) - size - 1)).sum(-1) / size


def entropy(counts: np.ndarray) -> np.ndarray:
    """Entropy of the experts' shares, bits."""
    f = shares(counts)
    return -(f * np.log2(np.where(f > 0, f, 1))).sum(-1) + 0.0


def aux_loss(counts: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """E Σ f_e p_e from summed choices and summed router probabilities."""
    return counts.shape[-1] * (shares(counts) * shares(mass)).sum(-1)


def _bounded(
    name: str,
    short: str,
    value: np.ndarray,
    drawn: np.ndarray,
    hits: Draws,
    kept: list[int],
    most: float = np.inf,
) -> dict[str, np.ndarray]:
    """A measure [group, layer] and its bounds as columns."""
    low, high = hits.group_bounds(value, drawn, most)
    triple = ((name, value), (f"{short}_low", low), (f"{short}_high", high))
    return {key: each[kept].ravel() for key, each in triple}
