"""Routing divergence: log2 of the groups when disjoint, 0 on the same text, a permutation null."""

from dataclasses import replace

import numpy as np
import pytest

from gptoss_workbench.routing.divergence import divergence, js, normalised


def grouped(by_hand, experts, groups, per=10):
    """One token a place, `per` places a prompt, prompts in turn in each of the groups."""
    n = len(experts)
    labels = [groups[i % len(groups)] for i in range(n // per)]
    return by_hand(experts[:, None], n_experts=8, prompt=np.arange(n) // per, labels=labels)


def test_disjoint_experts_give_log2_of_the_groups(by_hand):
    prompt = np.arange(800) // 10
    first = prompt % 4 * 2
    found = divergence(grouped(by_hand, np.stack([first, first + 1], 1), "abcd"), resamples=20)
    row = found.layers
    assert np.isclose(row["js"][0], 2) and np.isclose(row["normalised"][0], 2 / 3)
    assert np.isclose(row["low"][0], 2) and row["p"][0] < 0.02 and row["chance"][0] < 0.4
    assert len(found.pairs) == 6 and np.allclose(found.pairs["js"], 1)


def test_the_same_text_under_two_labels_gives_0(by_hand):
    text = np.random.default_rng(0).integers(0, 8, (10, 1))
    found = divergence(grouped(by_hand, np.tile(text, (20, 1)), "ab"), resamples=20)
    assert found.layers["js"][0] < 1e-12 and found.layers["p"][0] == 1


def test_a_random_router_is_within_its_null(by_hand):
    experts = np.random.default_rng(0).permuted(np.tile(np.arange(8), (800, 1)), axis=1)[:, :2]
    row = divergence(grouped(by_hand, experts, "abcd"), resamples=20).layers
    assert row["p"][0] > 0.02 and row["js"][0] < 3 * row["chance"][0] < 0.1


def test_prompts_that_differ_from_each_other_raise_the_null(by_hand):
    rng = np.random.default_rng(0)
    favourite = np.repeat(rng.integers(0, 8, 80), 10)
    row = divergence(grouped(by_hand, favourite[:, None], "ab"), resamples=20).layers
    assert row["chance"][0] > 0.02 and row["p"][0] > 0.02


def test_js_stays_between_0_and_log2_of_the_groups():
    rng = np.random.default_rng(0)
    counts = rng.dirichlet(np.full(16, 0.05), (50, 4, 3)) * 100
    assert (js(counts) >= 0).all() and (js(counts) <= 2 + 1e-12).all()
    assert (normalised(counts) <= 1).all()
    p, q = np.array([0.5, 0.5, 0]), np.array([0, 0.5, 0.5])
    middle = (p + q) / 2
    kl = [sum(a * np.log2(a / m) for a, m in zip(x, middle, strict=True) if a) for x in (p, q)]
    assert np.isclose(js(np.stack([p, q])[:, None])[0], np.mean(kl))


def test_nano_s_languages_part_in_the_planted_layer_only(taught, planted):
    table = divergence(taught, resamples=20, permutations=20).layers
    assert table.where(layer=planted.layer)["js"][0] > 1.6
    others = table.where(layer=[layer for layer in range(4) if layer != planted.layer])
    assert (others["js"] < 0.3).all()
    of_all = divergence(taught, of="probabilities", resamples=5, permutations=5).layers
    assert of_all.where(layer=planted.layer)["js"][0] > 1.4


def test_shuffled_labels_part_in_no_layer(taught, planted):
    order = np.random.default_rng(1).permutation(len(taught.labels))
    shuffled = replace(taught, labels=tuple(taught.labels[i] for i in order))
    row = divergence(shuffled, resamples=5, permutations=40).layers.where(layer=planted.layer)
    assert row["js"][0] < 0.6 and row["p"][0] > 0.02


def test_one_group_is_refused(by_hand):
    with pytest.raises(ValueError, match="two groups"):
        divergence(grouped(by_hand, np.zeros((20, 1), int), "a"))
