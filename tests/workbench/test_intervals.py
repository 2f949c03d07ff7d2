"""Intervals cover what they must, and are as wide as the formula says."""

import numpy as np
import pytest

from gptoss_workbench.intervals import bootstrap, wilson


def test_wilson_gives_the_textbook_bounds():
    low, high = wilson(np.array([8]), np.array([10]))
    assert low[0] == pytest.approx(0.4902, abs=1e-4)
    assert high[0] == pytest.approx(0.9433, abs=1e-4)


def test_nothing_seen_says_nothing():
    assert [bound.tolist() for bound in wilson(np.array([0]), np.array([0]))] == [[0.0], [1.0]]


def test_wilson_covers_the_true_share_as_often_as_it_says():
    rng = np.random.default_rng(0)
    low, high = wilson(rng.binomial(40, 0.3, 4000), np.full(4000, 40))
    assert 0.93 < ((low <= 0.3) & (high >= 0.3)).mean() < 0.97


def test_bootstrap_draws_prompts_and_not_tokens():
    rng = np.random.default_rng(0)
    hits = np.where(rng.random(50) < 0.5, 100, 0)  # a prompt is all hits or none
    counts = np.stack([hits, np.full(50, 100)], 1)
    low, high = bootstrap(lambda total: total[0] / total[1], counts)
    assert high - low > 0.2  # 5,000 independent tokens would give 0.03
    assert low < hits.sum() / 5000 < high


def test_the_same_seed_gives_the_same_interval():
    counts = np.random.default_rng(1).random((20, 3))
    first, again = (bootstrap(lambda total: total, counts, seed=3) for _ in range(2))
    assert np.array_equal(first, again)
