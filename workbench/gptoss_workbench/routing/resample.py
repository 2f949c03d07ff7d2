"""Prompts drawn again while a corpus streams by.

A Poisson bootstrap: in each resample a prompt counts Poisson(1) times, which for many prompts is
drawing with replacement, and needs no second pass (Hanley & MacGibbon 2006). The counts are seeded
by the prompt's number, so they depend neither on shards nor on filters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gptoss_workbench.intervals import around
from gptoss_workbench.routing.ratios import clusters
from gptoss_workbench.routing.trace import RoutingTrace


class Draws(NamedTuple):
    """Sums over all prompts, and over each resample's."""

    names: list[str]
    tokens: np.ndarray
    """int64 [group]"""
    prompts: np.ndarray
    """int64 [group], those that have tokens in it"""
    total: np.ndarray
    """float64 [group, layer, expert]"""
    drawn: np.ndarray
    """float64 [resample, group, layer, expert]"""

    def bounds(
        self, statistic: Callable[[np.ndarray], np.ndarray], most: float = np.inf
    ) -> tuple[np.ndarray, np.ndarray]:
        """Bounds, 0 to `most`, of a statistic of [..., group, layer, expert]."""
        values = statistic(self.drawn)
        if self.prompts.sum() < 2:
            values = np.full_like(values, np.nan)
        return around(statistic(self.total), values, 0.0, most)

    def group_bounds(
        self, estimate: np.ndarray, drawn: np.ndarray, most: float = np.inf
    ) -> tuple[np.ndarray, np.ndarray]:
        """Bounds, 0 to `most`, of each group's [group, layer], drawn [resample, group, layer].

        Resamples without a token of the group count for nothing.
        """
        seen = (self.drawn.sum(-1) > 0) & (self.prompts > 1)[:, None]
        return around(estimate, np.where(seen, drawn, np.nan), 0.0, most)


def draws(
    routing: RoutingTrace,
    by: str | None,
    *,
    of: str = "choices",
    resamples: int = 200,
    seed: int = 0,
) -> Draws:
    """Sum every group's choices (or weights, probabilities), and so of each resample."""
    names, _ = routing.groups(by)
    shape = (len(names), len(routing.layers), routing.n_experts)
    total, drawn = np.zeros(shape), np.zeros((resamples, *shape))
    tokens, prompts = np.zeros(len(names), np.int64), np.zeros(len(names), np.int64)
    for each in clusters(routing, by, of):
        times = np.stack([times_drawn(int(p), resamples, seed) for p in each.prompt], 1)
        for g in np.unique(each.group):
            mine = each.group == g
            flat = each.sums[mine].reshape(mine.sum(), -1)
            total[g] += flat.sum(0).reshape(shape[1:])
            drawn[:, g] += (times[:, mine] @ flat).reshape(resamples, *shape[1:])
            tokens[g] += each.tokens[mine].sum()
            prompts[g] += mine.sum()
    return Draws(names, tokens, prompts, total, drawn)


def times_drawn(prompt: int, resamples: int, seed: int) -> np.ndarray:
    """How often a prompt counts in each resample, float64."""
    return np.random.default_rng([seed, prompt]).poisson(1.0, resamples).astype(float)
