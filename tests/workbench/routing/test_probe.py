"""The linear probe: finds what is linearly there, keeps groups together, fails on noise."""

import numpy as np
import pytest

from gptoss_workbench.routing.probe import cross_validated, fit, fold_numbers, majority


def blobs(n=150, apart=5.0, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    return rng.normal(size=(n, 4)) + apart * np.eye(3, 4)[y], y


def test_separate_classes_are_told_apart_and_noise_is_not():
    x, y = blobs()
    assert (cross_validated(x, y) == y).mean() > 0.97
    noise, y = blobs(apart=0)
    assert abs((cross_validated(noise, y) == y).mean() - 1 / 3) < 0.15


def test_the_fit_is_where_the_penalised_likelihood_is_flat():
    x, y = blobs(80, apart=2)
    weight = fit(x, y, 3, l2=2.0, tolerance=1e-7)
    logits = x @ weight[:-1] + weight[-1]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) - np.eye(3)[y]
    np.testing.assert_allclose(x.T @ p + 2.0 * weight[:-1], 0, atol=2e-5)
    np.testing.assert_allclose(p.sum(0), 0, atol=2e-5)


def test_class_numbers_come_back_as_they_were_given():
    x, y = blobs()
    assert set(cross_validated(x, y * 10 + 5)) <= {5, 15, 25}


def test_groups_stay_in_one_fold_and_classes_are_spread():
    y = np.repeat([0, 1], 50)
    groups = np.repeat(np.arange(20), 5)
    fold = fold_numbers(y, groups, 5, 0)
    assert all(len(set(fold[groups == g])) == 1 for g in range(20))
    assert all((y[fold == f] == 0).sum() == 10 for f in range(5))


def test_a_group_s_own_mark_does_not_leak_into_its_fold():
    rng = np.random.default_rng(0)
    groups, y = np.repeat(np.arange(30), 10), np.repeat(rng.permutation([0, 1] * 15), 10)
    x = np.eye(30)[groups]
    assert (cross_validated(x, y) == y).mean() > 0.95
    assert (cross_validated(x, y, groups=groups) == y).mean() < 0.75


def test_results_repeat_and_too_little_is_refused():
    x, y = blobs(60, apart=1)
    assert (cross_validated(x, y, seed=3) == cross_validated(x, y, seed=3)).all()
    with pytest.raises(ValueError, match="two classes"):
        cross_validated(x, y * 0)
    with pytest.raises(ValueError, match="as many prompts"):
        cross_validated(x, y, groups=y)
    assert majority(np.array([1, 1, 2])) == 2 / 3
