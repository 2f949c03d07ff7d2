"""Co-activation: which experts are chosen together.

    N_{ij} / N_i     share of expert i's tokens that also go to j      (OLMoE, 2409.02060)

over all pairs among the k chosen, so a row sums to k - 1, and the matrix is asymmetric exactly
where N_i and N_j differ. OLMoE's released script counts only experts of neighbouring rank:
`script_compat=True`. By chance (k - 1) / (E - 1), and 2 (k - 1) / (k (E - 1)) for neighbours.
"""

from __future__ import annotations

import numpy as np

from gptoss_workbench.routing.ratios import Ratio, notes, selected, spoken, whole_prompts
from gptoss_workbench.routing.record import Record
from gptoss_workbench.routing.trace import RoutingTrace
from gptoss_workbench.table import Table


def coactivation(
    routing: RoutingTrace,
    *,
    by: str | None = None,
    headers: bool = False,
    script_compat: bool = False,
) -> Table:
    """Share of expert i's tokens that go to j too: a row a group, layer, i and j (i != j)."""
    routing = selected(routing, headers)
    names, group_of = routing.groups(by)
    layers, experts = len(routing.layers), routing.n_experts
    if routing.k < 2:
        raise ValueError(f"coactivation: needs two chosen experts a token; k is {routing.k}")
    ratio = Ratio(len(names), (layers, experts, experts), (layers, experts, 1))
    tokens = np.zeros(len(names), np.int64)
    for record in whole_prompts(routing, len(names) * layers * experts * experts):
        group = group_of(record)
        key = record.prompt.astype(np.int64) * len(names) + group
        keys, row = np.unique(key, return_inverse=True)
        pairs, each = _pairs(record, row, (len(keys), layers, experts), script_compat)
        ratio.add(keys % len(names), pairs, each[..., None])
        tokens += np.bincount(group, minlength=len(names))
    kept = spoken(names, tokens)
    low, high = ratio.interval()
    off = ~np.eye(experts, dtype=bool)
    i, j = off.nonzero()
    of = np.broadcast_to(ratio.of, ratio.hits.shape)
    chance = (routing.k - 1) / (experts - 1) * (2 / routing.k if script_compat else 1)
    count = len(kept) * layers
    rows = (
        "rank-adjacent pairs only, as OLMoE's released script counts"
        if script_compat
        else (f"a row (i) sums to k - 1 = {routing.k - 1} over j")
    )
    return Table(
        {
            "group": np.repeat(np.array(names)[kept], layers * len(i)),
            "layer": np.tile(np.repeat(routing.layers, len(i)), len(kept)),
            "i": np.tile(i, count),
            "j": np.tile(j, count),
            "share": ratio.share[kept][..., off].ravel(),
            "chance": np.full(count * len(i), chance),
            "low": low[kept][..., off].ravel(),
            "high": high[kept][..., off].ravel(),
            "n": of[kept][..., off].ravel().astype(np.int64),
        },
        title="Share of expert i's tokens that go to expert j too",
        source="N_ij / N_i over all pairs among the k chosen (OLMoE, 2409.02060)",
        units={"share": "of expert i's tokens", "n": "tokens of expert i"},
        notes=(rows, *notes(headers)),
        provenance=dict(routing.provenance) | {"script_compat": script_compat},
    )


def coactivation_matrix(table: Table, *, layer: int, group: str = "all") -> np.ndarray:
    """One layer's shares [i, j] from a co-activation table; the diagonal is 0."""
    rows = table.where(layer=layer, group=group)
    if not len(rows):
        raise ValueError(f"coactivation_matrix: no rows of layer {layer} and group {group!r}")
    size = int(rows["i"].max()) + 1
    out = np.zeros((size, size))
    out[rows["i"], rows["j"]] = rows["share"]
    return out


def _pairs(
    record: Record, row: np.ndarray, shape: tuple[int, int, int], neighbours: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Ordered pairs [cluster, layer, i, j] and choices [cluster, layer, i] of each cluster."""
    count, layers, experts = shape
    chosen = record.experts.astype(np.int64)
    base = row[:, None] * layers + np.arange(layers)  # [token, layer]
    pairs = np.zeros(count * layers * experts * experts)
    k = chosen.shape[-1]
    for a in range(k):
        for b in range(a + 1, min(a + 2, k) if neighbours else k):
            at = (base * experts + chosen[..., a]) * experts + chosen[..., b]
            pairs += np.bincount(at.ravel(), minlength=len(pairs))
    pairs = pairs.reshape(count, layers, experts, experts)
    each = np.bincount(
        (base[..., None] * experts + chosen).ravel(), minlength=count * layers * experts
    )
    return pairs + pairs.swapaxes(-1, -2), each.reshape(shape).astype(float)
