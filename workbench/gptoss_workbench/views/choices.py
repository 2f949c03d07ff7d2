"""The routing of one row as a view reads it: experts, weights, and one statistic per cell.

A page gets experts and weights rank by rank; the last weight is what the others leave of 1, unless
an edit made them sum to something else. The statistics of the weights it computes itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .packing import quantise

if TYPE_CHECKING:
    from gptoss_workbench.trace import Trace

TOP_WEIGHT, ENTROPY, MARGIN, CHOSEN = "top weight", "entropy", "margin", "expert chosen"
MEANING = {
    TOP_WEIGHT: "weight of the best expert",
    ENTROPY: "entropy of the k weights, in bits",
    MARGIN: "router logit of the last chosen expert above the first one left out",
    CHOSEN: "weight of the selected expert, blank where it is not chosen",
}


class Choices(NamedTuple):
    """The routing of one row, pads left out."""

    layers: list[int]
    experts: np.ndarray
    """[layer, token, k], best first."""
    weights: np.ndarray
    """[layer, token, k]"""
    statistics: dict[str, np.ndarray]
    """Name: [layer, token]."""
    scales: dict[str, tuple[float, float]]
    """Name: both ends of its colour scale."""
    n_experts: int
    """Experts in a layer."""

    @property
    def k(self) -> int:
        """Experts that a token gets."""
        return self.experts.shape[-1]


def read_choices(
    trace: Trace, row: int, columns: list[int], layers: Sequence[int] | None = None
) -> Choices:
    """Take one row's routing out of a trace, with its statistics."""
    if trace.routing is None:
        raise ValueError("views.experts: the trace has no routing; make it with routing=True")
    held = list(trace.layers)
    shown = held if layers is None else list(layers)
    if not shown or not set(shown) <= set(held):
        raise ValueError(f"views.experts: the trace has layers {held}; got layers={layers}")
    at = [held.index(layer) for layer in shown]
    chosen = trace.routing.experts[at][:, row, columns].numpy().astype(np.int64)
    weights = trace.routing.weights[at][:, row, columns].float().numpy()
    k = chosen.shape[-1]
    safe = np.clip(weights, 1e-12, None)
    statistics = {TOP_WEIGHT: weights[..., 0], ENTROPY: -(weights * np.log2(safe)).sum(-1)}
    scales = {TOP_WEIGHT: (1 / k, 1.0), ENTROPY: (0.0, float(np.log2(k)))}
    if trace.routing.logits is not None:
        logits = trace.routing.logits[at][:, row, columns].float().numpy()
        statistics[MARGIN] = _margin(logits, k)
        scales[MARGIN] = (0.0, float(np.ceil(_top(statistics[MARGIN]) * 10) / 10))
    count = int(trace.config["num_local_experts"])
    return Choices(shown, chosen, weights, statistics, scales | {CHOSEN: (0.0, 1.0)}, count)


def choice_buffers(choices: Choices) -> dict[str, np.ndarray]:
    """What the page gets: experts and weights [k, layer, token], and the margin [layer, token]."""
    ranks = np.moveaxis(choices.weights, -1, 0)
    out = {
        "experts": np.moveaxis(choices.experts, -1, 0).astype(small(choices)),
        "weights": quantise(ranks[:-1] if implied(choices) else ranks),
    }
    if MARGIN in choices.statistics:
        out[MARGIN] = quantise(choices.statistics[MARGIN], *choices.scales[MARGIN])
    return out


def implied(choices: Choices) -> bool:
    """Tell whether the last weight is what the others leave of 1."""
    return bool(np.allclose(choices.weights.sum(-1), 1, atol=2e-3))


def small(choices: Choices) -> type[np.unsignedinteger]:
    """The number type that holds an expert."""
    return np.uint8 if choices.n_experts <= 256 else np.uint16


def _margin(logits: np.ndarray, k: int) -> np.ndarray:
    """[layer, token]: k-th best logit less the next; banned experts (-inf) give no number."""
    best = -np.partition(-logits, (k - 1, k), axis=-1)
    with np.errstate(invalid="ignore"):
        return best[..., k - 1] - best[..., k]


def _top(values: np.ndarray) -> float:
    """The largest number, 0 if there is none."""
    numbers = values[np.isfinite(values)]
    return float(numbers.max()) if numbers.size else 0.0
