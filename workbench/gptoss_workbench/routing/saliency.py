"""How much each expert adds where it is used, and what deleting experts would delete.

    S_e   = mean over the tokens routed to e of g_e(x) ‖f_e(x)‖₂       REAP (arXiv 2510.13999)
    EAN_e = sum over those tokens of ‖f_e(x)‖₂                          expert activation norm
    frequency_e = tokens routed to e / tokens

g is the weight over the kept k (what gpt-oss multiplies by), f the expert's unweighted output with
its bias. An expert that no token goes to has S = 0.
"""

from __future__ import annotations

import numpy as np

from gptoss_workbench.intervals import bootstrap
from gptoss_workbench.routing.per_prompt import layer_expert, needs, prompt_counts
from gptoss_workbench.routing.record import Record
from gptoss_workbench.routing.trace import RoutingTrace
from gptoss_workbench.table import Table

BLOCKS = 256
"""Prompts are summed into at most this many blocks before they are drawn again."""
ORDERS = ("saliency", "ean", "frequency", "random")


def expert_saliency(routing: RoutingTrace, *, resamples: int = 200, seed: int = 0) -> Table:
    """REAP's saliency of every expert, with the expert activation norm and the frequency.

    Needs norms: trace_routing(..., keep=("norms",)).

    Columns: saliency with its 95 % interval (low, high: bootstrap over prompts), ean, frequency,
    contribution (sum of g ‖f‖ over tokens), n (tokens routed to the expert).
    """
    counts = prompt_counts(routing)
    weighed = prompt_counts(routing, weigh=_weighed).sums
    ean = prompt_counts(routing, weigh=lambda record: needs(record, "norms")).sums.sum(0)
    low, high = bootstrap(
        _mean, _blocks(np.stack([weighed, counts.sums], 1)), resamples=resamples, seed=seed
    )
    n, contribution = counts.sums.sum(0), weighed.sum(0)
    columns = {
        "saliency": _mean(np.stack([contribution, n])), "low": low, "high": high, "ean": ean,
        "frequency": n / counts.tokens.sum(), "contribution": contribution, "n": n.astype(int),
    }  # fmt: skip
    return Table(
        layer_expert(routing) | {name: column.ravel() for name, column in columns.items()},
        "saliency of every expert: mean g ‖f‖ over the tokens routed to it",
        "S_e = mean over routed tokens of g_e ‖f_e‖₂ (REAP, arXiv 2510.13999)",
        {"saliency": "residual norm", "ean": "residual norm", "frequency": "of tokens"},
        [
            f"chance of frequency: k / E = {routing.k / routing.n_experts:.3g}",
            "g: weight over the kept k, as the model multiplies",
            "interval: bootstrap over prompts; 0 to 0 where no token is routed",
        ],
        dict(routing.provenance),
    )


def saliency_cut(saliency: Table, *, seed: int = 0) -> Table:
    """What deleting the n lowest experts of every layer deletes, for four orders of deletion.

    Args:
        saliency: of `expert_saliency`.

    Columns: order ("saliency", "ean", "frequency": lowest first; "random"), dropped (experts a
    layer), and the deleted shares of saliency (of the sum of S), contribution (of the sum of
    g ‖f‖) and traffic (of all choices), averaged over layers. Random order is the chance line.
    """
    layers = np.unique(saliency["layer"])
    grid = {
        name: saliency[name].reshape(len(layers), -1).astype(float)
        for name in ("saliency", "ean", "frequency", "contribution")
    }
    rng = np.random.default_rng(seed)
    grid["random"] = rng.permuted(
        np.tile(np.arange(grid["ean"].shape[1]), (len(layers), 1)), axis=1
    )
    parts = [_cut(name, grid) for name in ORDERS]
    return Table(
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]},
        "shares deleted with the n lowest experts of each layer",
        "cut curve: saliency deleted against traffic deleted (after REAP, arXiv 2510.13999)",
        {name: "deleted share" for name in ("saliency", "contribution", "traffic")},
        ["mean over layers; order='random' is what deleting without a score deletes"],
        {"seed": seed},
    )


def _weighed(record: Record) -> np.ndarray:
    return needs(record, "norms") * record.weights


def _mean(sums: np.ndarray) -> np.ndarray:
    """[2, layer, expert] (sum, count) to the mean; 0 without a count."""
    return np.divide(sums[0], sums[1], out=np.zeros_like(sums[0], float), where=sums[1] > 0)


def _blocks(per_prompt: np.ndarray) -> np.ndarray:
    """Rows summed into at most BLOCKS rows, so that a bootstrap stays small."""
    if len(per_prompt) <= BLOCKS:
        return per_prompt
    return np.stack([per_prompt[i::BLOCKS].sum(0) for i in range(BLOCKS)])


def _cut(order: str, grid: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    ranked = np.argsort(grid[order], axis=1, kind="stable")  # [layer, expert], lowest first
    out: dict[str, np.ndarray] = {}
    for name, of in (("saliency",) * 2, ("contribution",) * 2, ("traffic", "frequency")):
        values = np.take_along_axis(grid[of], ranked, 1).cumsum(1)
        share = values / np.maximum(values[:, -1:], np.finfo(float).tiny)
        out[name] = np.concatenate([[0.0], share.mean(0)])
    steps = np.arange(len(out["traffic"]))
    return {"order": np.full(len(steps), order, dtype=object), "dropped": steps, **out}
