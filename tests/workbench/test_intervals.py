"""Intervals cover what they must, and are as wide as the formula says."""

import numpy as np
import pytest

from gptoss_workbench.intervals import around, bootstrap, wilson


def test_wilson_gives_the_textbook_bounds():
    low, high = wilson(np.array([8]), np.array([10]))
    assert low[0] == pytest.approx(0.4902, abs=1e-4)
    assert high[0] == pytest.approx(0.9433, abs=1e-4)


def test_nothing_seen_says_nothing():
    assert [bound.tolist() for bound in wilson(np.array([0]), np.array([0]))] == [[0.0], [1.0]]


def test_none_of_all_and_all_of_all_bound_exactly():
    low, high = wilson(np.array([0, 30, 0.3]), np.array([30, 30, 3]))
    assert low[0] == 0 and high[1] == 1 and 0 < low[2] < high[2] < 1


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


def test_bounds_hold_the_estimate_of_a_measure_that_drawing_again_makes_larger():
    counts = np.ones((40, 4)) + np.eye(4)[np.arange(40) % 4]  # balanced over all prompts
    spread = lambda total: total.std(-1)  # noqa: E731
    low, high = bootstrap(spread, counts)
    assert low <= spread(counts.sum(0)) == 0 <= high
    low, high = bootstrap(spread, np.random.default_rng(0).random((40, 4)))
    assert low < spread(np.random.default_rng(0).random((40, 4)).sum(0)) < high


def test_bounds_cover_an_uneven_truth_as_often_as_they_say():
    rng, share = np.random.default_rng(0), np.array([0.4, 0.3, 0.2, 0.1])
    spread = lambda total: (total / total.sum(-1, keepdims=True)).std(-1)  # noqa: E731
    covered = 0
    for seed in range(300):
        low, high = bootstrap(spread, rng.multinomial(20, share, 60), seed=seed)
        covered += bool(low <= share.std() <= high)
    assert 0.9 < covered / 300 < 0.98


def test_one_prompt_says_nothing_about_others():
    low, high = bootstrap(lambda total: total, np.ones((1, 3)))
    assert np.isnan(low).all() and np.isnan(high).all()


def test_draws_that_are_nan_count_for_nothing():
    drawn = np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, np.nan]])
    low, high = around(np.array([2.0, 5.0]), drawn, most=2.5)
    assert low[0] == pytest.approx(1.05) and high[0] == 2.5
    assert np.isnan(low[1]) and np.isnan(high[1])
