"""Linear probes: multinomial logistic regression, cross-validated.

    minimise  mean cross entropy + l2 / (2 n) · |W|²      on standardised features

Fitted with L-BFGS from zero, so a result depends on the data and the seed of the folds only.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def fit(x: Tensor, y: Tensor, classes: int, *, l2: float = 1.0, steps: int = 60) -> Tensor:
    """Weights [d + 1, class] of a linear probe on x [n, d], y [n]; the last row is the bias."""
    weight = torch.zeros(x.shape[1] + 1, classes, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weight], max_iter=steps, history_size=8, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(x @ weight[:-1] + weight[-1], y)
        loss = loss + l2 / (2 * len(x)) * weight[:-1].square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimiser.step(closure)
    return weight.detach()


def cross_validated(
    x: np.ndarray,
    y: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    folds: int = 5,
    l2: float = 1.0,
    seed: int = 0,
) -> np.ndarray:
    """The class predicted for each row by a probe that was fitted without its fold.

    Rows of one group share a fold, and every fold has its share of each class.
    """
    known, codes = np.unique(y, return_inverse=True)
    if len(known) < 2:
        raise ValueError(f"a probe needs two classes or more; got {known.tolist()}")
    fold = fold_numbers(codes, np.arange(len(y)) if groups is None else groups, folds, seed)
    features = torch.from_numpy(np.asarray(x, np.float32).reshape(len(y), -1))
    targets = torch.from_numpy(codes.astype(np.int64))
    out = np.empty(len(y), np.int64)
    for number in np.unique(fold):
        test = torch.from_numpy(fold == number)
        mean, scale = features[~test].mean(0), features[~test].std(0, correction=0)
        ready = (features - mean) / torch.where(scale > 1e-6, scale, 1.0)
        weight = fit(ready[~test], targets[~test], len(known), l2=l2)
        guess = (ready[test] @ weight[:-1] + weight[-1]).argmax(1).numpy()
        out[fold == number] = guess
    return known[out]


def fold_numbers(y: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold of each row: groups dealt out class by class, in random order."""
    names, first, row = np.unique(groups, return_index=True, return_inverse=True)
    if len(names) < folds:
        raise ValueError(f"{folds} folds need as many prompts; got {len(names)}: give fewer folds=")
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(y[first][order], kind="stable")]
    fold = np.empty(len(names), np.int64)
    fold[order] = np.arange(len(names)) % folds
    return fold[row]


def majority(y: np.ndarray) -> float:
    """Accuracy of always naming the most common class."""
    return float(np.unique(y, return_counts=True)[1].max() / len(y))
