"""Two runs' expert choices side by side, at the tokens both hold; see `trace_diff`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .choices import Choices, small
from .packing import quantise
from .transcript import Transcript

if TYPE_CHECKING:
    from gptoss_workbench.trace import Trace

CHANGED, MOVED = "experts changed", "weight moved"
MEANING = {
    CHANGED: "experts of the token that the other run does not choose; blank: not in both runs",
    MOVED: "sum over experts of |weight here - weight there|; blank: not in both runs",
}


class Compared(NamedTuple):
    """What the other run chose, token by token of the first."""

    experts: np.ndarray
    """[layer, token, k], -1 where the token is not in both."""
    changed: np.ndarray
    """[layer, token], experts of the first run not chosen in the other; nan where not in both."""
    moved: np.ndarray
    """[layer, token], L1 distance of the weights; nan where not in both."""
    both: int
    only_here: int
    only_there: int
    """Tokens."""

    @property
    def paired(self) -> np.ndarray:
        """[token], whether the token is in both."""
        return self.experts[0, :, 0] >= 0


def compare(trace: Trace, other: Trace, row: int, story: Transcript, choices: Choices) -> Compared:
    """Align one row of two traces and read the other's choices."""
    if other.routing is None:
        raise ValueError("views.experts: other has no routing; make it with routing=True")
    if missing := sorted(set(choices.layers) - set(other.layers)):
        raise ValueError(
            f"views.experts: other has layers {list(other.layers)}, not {missing}; "
            "name the layers of both with layers=[...]"
        )
    diff = _routing_only(trace, row).diff(_routing_only(other, row))
    if diff.experts_changed is None or diff.weight_l1 is None or not diff.pairs:
        raise ValueError("views.experts: the two traces have no token in common in this row")
    index = {column: i for i, column in enumerate(story.columns)}
    here = [index[pair.a] for pair in diff.pairs]
    there = [pair.b for pair in diff.pairs]
    at = [diff.layers.index(layer) for layer in choices.layers]
    rows = [other.layers.index(layer) for layer in choices.layers]
    experts = np.full(choices.experts.shape, -1)
    experts[:, here] = other.routing.experts[rows][:, row, there].numpy()
    changed, moved = (np.full(choices.experts.shape[:2], np.nan) for _ in range(2))
    changed[:, here] = diff.experts_changed[:, at].T.numpy()
    moved[:, here] = diff.weight_l1[:, at].T.numpy()
    return Compared(experts, changed, moved, len(here), diff.only_a, diff.only_b)


def compared_buffers(choices: Choices, compared: Compared) -> dict[str, np.ndarray]:
    """What the page gets: the other's experts, as bits that differ, and the weight that moved."""
    there = np.where(compared.experts < 0, choices.experts, compared.experts)
    return {
        "paired": compared.paired.astype(np.uint8),
        "other": np.moveaxis(choices.experts ^ there, -1, 0).astype(small(choices)),
        MOVED: quantise(np.nan_to_num(compared.moved), 0.0, 2.0),
    }


def comparison(compared: Compared | None) -> dict[str, Any]:
    """How many tokens are compared, for the header."""
    if compared is None:
        return {"compared": None}
    counts = {"both": compared.both, "here": compared.only_here, "there": compared.only_there}
    return {"compared": counts}


def _routing_only(trace: Trace, row: int) -> Trace:
    """One row without activations, which are not compared here."""
    return replace(trace, activations={}, axes={}).select(row=row)
