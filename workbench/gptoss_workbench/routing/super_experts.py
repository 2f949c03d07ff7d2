"""Super experts: the few whose down projection makes outliers far beyond all others.

    a_{l,e} = max over tokens of max |down_proj output of expert e in layer l|
    super   = a > P99.5 of all a   and   a > max(a) / 10   and   l among the first 75 % of layers

Source: arXiv 2507.23279 and its released script. The script divides with `//`: a maximum below 10
then gives the threshold 0. `script_compat=True` does the same; the default is the formula.

The rule is relative: whichever expert is largest passes it, outlier or not. `times_median` says how
far it stands out; in a model without super experts it is small.
"""

from __future__ import annotations

import numpy as np

from gptoss_workbench.routing.per_prompt import layer_expert, needs
from gptoss_workbench.routing.trace import RoutingTrace
from gptoss_workbench.table import Table

PERCENTILE = 99.5
EARLY = 0.75
"""Share of the layers, from the first, that can hold super experts."""


def super_experts(routing: RoutingTrace, *, script_compat: bool = False) -> Table:
    """Largest output entry of every expert, and which experts are super; largest first.

    Needs peaks: trace_routing(..., keep=("peaks",)).

    Args:
        script_compat: take max // 10, as the authors' script, instead of max / 10.

    Columns: peak, times_median (of the experts that were used), is_super, n (tokens routed).
    """
    peak, n = _peaks(routing)
    used = peak[n > 0]
    largest = float(used.max())
    tenth = largest // 10 if script_compat else largest / 10
    bound = float(np.percentile(used, PERCENTILE))
    layers = int(routing.config.get("num_hidden_layers", max(routing.layers) + 1))
    place = layer_expert(routing)
    found = (peak > bound) & (peak > tenth) & (place["layer"] < EARLY * layers)
    middle = float(np.median(used))
    columns = place | {
        "peak": peak, "times_median": peak / middle if middle else np.zeros_like(peak),
        "is_super": found, "n": n,
    }  # fmt: skip
    order = np.argsort(-peak, kind="stable")
    return Table(
        {name: column[order] for name, column in columns.items()},
        "largest |output entry| of every expert",
        "super: a > P99.5 and a > max / 10 in the first 75 % of layers (arXiv 2507.23279)",
        {"peak": "residual units"},
        [
            f"thresholds: {bound:.4g} (P{PERCENTILE:g}) and {tenth:.4g} "
            f"({'max // 10, as the script' if script_compat else 'max / 10'})",
            "the rule is relative and the largest always passes it: read times_median",
        ],
        dict(routing.provenance) | {"script_compat": script_compat},
    )


def _peaks(routing: RoutingTrace) -> tuple[np.ndarray, np.ndarray]:
    """[layer expert] largest peak and number of tokens."""
    layers, experts = len(routing.layers), routing.n_experts
    peak, n = np.zeros(layers * experts), np.zeros(layers * experts, int)
    for record in routing.chunks():
        place = (np.arange(layers)[:, None] * experts + record.experts).ravel()
        np.maximum.at(peak, place, needs(record, "peaks").ravel())
        n += np.bincount(place, minlength=len(n))
    if not n.any():
        raise ValueError("super_experts: the selection holds no token; loosen where(...)")
    return peak, n
