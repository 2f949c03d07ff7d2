"""Linear probes: multinomial logistic regression, cross-validated.

    minimise  mean cross entropy + l2 / (2 n) · |W|²      on standardised features

Fitted from zero by L-BFGS with backtracking (Nocedal & Wright, algorithm 7.5), so a result depends
on the data and on the seed of the folds only.
"""

from __future__ import annotations

from collections import deque

import numpy as np

Pair = tuple[np.ndarray, np.ndarray]


def fit(
    x: np.ndarray,
    y: np.ndarray,
    classes: int,
    *,
    l2: float = 1.0,
    steps: int = 200,
    tolerance: float = 1e-4,
) -> np.ndarray:
    """Weights [d + 1, class] of a linear probe on x [n, d], y [n]; the last row is the bias.

    Ends where no entry of the gradient exceeds `tolerance` (nats), or after so many steps.
    """
    weight = np.zeros((x.shape[1] + 1, classes))
    value, slope = _loss(weight, x, y, l2)
    pairs: deque[Pair] = deque(maxlen=8)
    for _ in range(steps):
        if np.abs(slope).max() < tolerance:
            break
        step = _direction(slope, pairs)
        size, expected = 1.0, float((slope * step).sum())
        new, new_slope = _loss(weight + step, x, y, l2)
        while new > value + 1e-4 * size * expected and size > 1e-8:
            size /= 2
            new, new_slope = _loss(weight + size * step, x, y, l2)
        moved, bent = size * step, new_slope - slope
        if (moved * bent).sum() > 1e-12:
            pairs.append((moved, bent))
        weight, value, slope = weight + moved, new, new_slope
    return weight


def _loss(weight: np.ndarray, x: np.ndarray, y: np.ndarray, l2: float) -> tuple[float, np.ndarray]:
    """Penalised mean cross entropy, and its gradient."""
    n = len(x)
    logits = x @ weight[:-1] + weight[-1]
    logits -= logits.max(1, keepdims=True)
    p = np.exp(logits)
    total = p.sum(1, keepdims=True)
    rows = np.arange(n)
    value = (np.log(total[:, 0]) - logits[rows, y]).mean() + l2 / (2 * n) * (weight[:-1] ** 2).sum()
    p /= total
    p[rows, y] -= 1
    gradient = np.concatenate([x.T @ p / n + l2 / n * weight[:-1], p.mean(0, keepdims=True)])
    return float(value), gradient


def _direction(slope: np.ndarray, pairs: deque[Pair]) -> np.ndarray:
    """Minus the gradient, turned by the curvature of the last steps (two loops)."""
    out, scales = -slope, []
    for moved, bent in reversed(pairs):
        scale = (moved * out).sum() / (moved * bent).sum()
        scales.append(scale)
        out = out - scale * bent
    if pairs:
        moved, bent = pairs[-1]
        out = out * ((moved * bent).sum() / (bent * bent).sum())
    for (moved, bent), scale in zip(pairs, reversed(scales), strict=True):
        out = out + (scale - (bent * out).sum() / (moved * bent).sum()) * moved
    return out


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
    features = np.asarray(x, np.float64).reshape(len(y), -1)
    out = np.empty(len(y), np.int64)
    for number in np.unique(fold):
        test = fold == number
        mean, scale = features[~test].mean(0), features[~test].std(0)
        ready = (features - mean) / np.where(scale > 1e-6, scale, 1.0)
        weight = fit(ready[~test], codes[~test], len(known), l2=l2)
        out[test] = (ready[test] @ weight[:-1] + weight[-1]).argmax(1)
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
