"""95 % intervals: Wilson's for a share, a bootstrap over prompts for anything else.

Tokens of one prompt depend on each other, so what is drawn again is prompts, never tokens. Of fewer
than two prompts nothing can be said: NaN.
"""

import warnings
from collections.abc import Callable

import numpy as np

Z = 1.959963984540054
"""The normal quantile of a two-sided 95 % interval."""


def wilson(hits: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of a share of `hits` in `n` (Wilson 1927); 0 and 1 where n is 0."""
    hits, n = np.asarray(hits, float), np.asarray(n, float)
    safe = np.maximum(n, 1)
    share = hits / safe
    middle = (share + Z**2 / (2 * safe)) / (1 + Z**2 / safe)
    half = Z / (1 + Z**2 / safe) * np.sqrt(share * (1 - share) / safe + Z**2 / (4 * safe**2))
    low, high = np.clip(middle - half, 0, 1), np.clip(middle + half, 0, 1)
    return np.where(hits > 0, low, 0.0), np.where(hits < n, high, 1.0)


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray],
    per_prompt: np.ndarray,
    *,
    resamples: int = 200,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of `statistic(sum over prompts)`, around its value.

    Args:
        statistic: takes counts summed over prompts, [...], gives what is reported, any shape.
        per_prompt: [prompt, ...] counts or sums of each prompt.
    """
    rng = np.random.default_rng(seed)
    n = len(per_prompt)
    flat = per_prompt.reshape(n, -1).astype(float)
    draws = rng.multinomial(n, np.full(n, 1 / n), size=resamples) @ flat  # [resample, ...]
    values = np.stack([statistic(draw.reshape(per_prompt.shape[1:])) for draw in draws])
    estimate = statistic(flat.sum(0).reshape(per_prompt.shape[1:]))
    if n < 2:
        values = np.full_like(values, np.nan, dtype=float)
    return around(estimate, values)


def around(
    estimate: np.ndarray, drawn: np.ndarray, least: float = -np.inf, most: float = np.inf
) -> tuple[np.ndarray, np.ndarray]:
    """2.5 % and 97.5 % quantiles of draws [resample, ...], their bias taken off.

    Drawing prompts again makes measures of unevenness (CV, Gini, divergence) larger, as drawing a
    sample does: the quantiles are moved by the estimate minus the draws' mean (Efron & Tibshirani
    1993, 10.2), and kept between the `least` and the `most` that is possible. Draws that are NaN
    count for nothing; without others the bounds are NaN.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all draws NaN
        low, high = np.nanquantile(drawn, [0.025, 0.975], axis=0)
        bias = np.nanmean(drawn, 0) - estimate
    low, high = np.minimum(low - bias, estimate), np.maximum(high - bias, estimate)
    return np.clip(low, least, most), np.clip(high, least, most)
