"""Routing signatures: can a prompt's kind be read from which experts it used?

    signature   per prompt, the share of its tokens that go to each expert of each layer
    classifier  multinomial logistic regression on signatures, cross-validated (2603.11114)

Accuracy stands beside the share of the most common label and beside a run whose labels were dealt
out anew: what a classifier of this size reads from nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gptoss_workbench.intervals import wilson
from gptoss_workbench.routing.probe import cross_validated, majority
from gptoss_workbench.routing.ratios import clusters, notes, selected
from gptoss_workbench.routing.trace import RoutingTrace
from gptoss_workbench.table import Table

ALL = "all"


class Signatures(NamedTuple):
    """One signature a prompt."""

    prompts: np.ndarray
    """int64 [prompt], numbers in the corpus"""
    shares: np.ndarray
    """float32 [prompt, layer, expert]; a layer's entries sum to k"""


class SignatureClassifier(NamedTuple):
    """How well labels are read from signatures."""

    accuracy: Table
    """A row for all layers together, and one for each alone."""
    confusion: Table
    """A row a true and predicted label, all layers together."""


def signatures(routing: RoutingTrace, *, headers: bool = False) -> Signatures:
    """Every prompt's expert frequencies."""
    parts = [
        (each.prompt, (each.sums / each.tokens[:, None, None]).astype(np.float32))
        for each in clusters(selected(routing, headers), None)
    ]
    if not parts:
        raise ValueError("signatures: the selection holds no token outside headers")
    prompts, shares = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Signatures(prompts, shares)


def signature_classifier(
    routing: RoutingTrace,
    *,
    folds: int = 5,
    l2: float = 1.0,
    shuffles: int = 3,
    headers: bool = False,
    seed: int = 0,
) -> SignatureClassifier:
    """Read each prompt's label from its signature: all layers, each layer alone, and a control.

    Args:
        shuffles: runs with labels dealt out anew; their mean accuracy is the column "shuffled".
    """
    if not routing.labels:
        raise ValueError("signature_classifier: this trace has no labels; give them when tracing")
    found = signatures(routing, headers=headers)
    y = np.array(routing.labels)[found.prompts]
    rng = np.random.default_rng(seed)
    dealt = [rng.permutation(y) for _ in range(shuffles)]

    def read(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
        codes = np.unique(labels, return_inverse=True)[1]
        return np.unique(labels)[cross_validated(x, codes, folds=folds, l2=l2, seed=seed)]

    views = {ALL: found.shares} | {str(n): found.shares[:, i] for i, n in enumerate(routing.layers)}
    guesses = {name: read(x, y) for name, x in views.items()}
    hits = np.array([(guess == y).sum() for guess in guesses.values()])
    low, high = wilson(hits, np.full(len(hits), len(y)))
    control = [np.mean([(read(x, d) == d).mean() for d in dealt]) for x in views.values()]
    about = {
        "source": "Logistic regression on per-prompt expert frequencies, by fold (2603.11114)",
        "provenance": dict(routing.provenance) | {"seed": seed, "folds": folds, "l2": l2},
    }
    accuracy = Table(
        {
            "layers": np.array(list(views)),
            "accuracy": hits / len(y),
            "chance": np.full(len(hits), majority(y)),
            "shuffled": np.array(control) if shuffles else np.full(len(hits), np.nan),
            "low": low,
            "high": high,
            "n": np.full(len(hits), len(y)),
        },
        title="Labels read from routing signatures",
        units={"n": "prompts"},
        notes=(
            "chance names the most common label; shuffled is the same run on labels dealt anew",
            *notes(headers),
        ),
        **about,
    )
    return SignatureClassifier(accuracy, _confusion(y, guesses[ALL], about))


def _confusion(y: np.ndarray, guess: np.ndarray, about: dict) -> Table:
    names = np.unique(y)
    true, said = np.repeat(names, len(names)), np.tile(names, len(names))
    n = np.array([((y == a) & (guess == b)).sum() for a, b in zip(true, said, strict=True)])
    of = np.array([(y == a).sum() for a in true])
    low, high = wilson(n, of)
    return Table(
        {"true": true, "predicted": said, "share": n / of, "low": low, "high": high, "n": n},
        title="Confusion, all layers",
        units={"share": "of the true label's prompts", "n": "prompts"},
        **about,
    )
