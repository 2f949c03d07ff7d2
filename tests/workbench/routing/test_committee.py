"""Standing committee: the always-on expert is found with its gate mass; nobody else sits."""

import numpy as np
import pytest

from gptoss_workbench.routing.committee import committee, jaccard, random_jaccard, top_sets


def routing_with(by_hand, *, always, n=1600, experts=16, seed=0):
    """Experts at random, and if `always` expert 5 first for every token, with weight 0.4."""
    rng = np.random.default_rng(seed)
    others = np.array([e for e in range(experts) if e != 5]) if always else np.arange(experts)
    drawn = rng.permuted(np.tile(others, (n, 1)), axis=1)[:, : 3 if always else 4]
    chosen = np.concatenate([np.full((n, 1), 5), drawn], 1) if always else drawn
    weights = np.tile([0.4, 0.2, 0.2, 0.2], (n, 1, 1)).astype(np.float32)
    prompt = np.arange(n) // 10
    return by_hand(
        chosen[:, None], n_experts=experts, prompt=prompt, weights=weights,
        labels=[f"d{i % 8}" for i in range(n // 10)],
    )  # fmt: skip


def test_the_planted_expert_is_found_and_carries_its_gate_mass(by_hand):
    found = committee(routing_with(by_hand, always=True), resamples=50)
    assert found.members["expert"].tolist() == [5] and found.members["groups"][0] == 1
    assert np.isclose(found.members["mass"][0], 0.4) and np.isclose(found.layers["mass"][0], 0.4)
    assert found.layers["members"][0] == 1 and found.layers["chance"][0] == 1 / 16
    assert np.isclose(found.layers["low"][0], 0.4) and np.isclose(found.layers["high"][0], 0.4)


def test_a_random_router_has_no_committee(by_hand):
    for seed in range(3):
        found = committee(routing_with(by_hand, always=False, seed=seed), resamples=50)
        assert len(found.members) == 0 and found.layers["mass"][0] == 0
        assert abs(found.layers["jaccard"][0] - found.layers["chance_jaccard"][0]) < 0.12


def test_of_choices_the_planted_expert_has_one_in_k(by_hand):
    found = committee(routing_with(by_hand, always=True), of="choices", resamples=20)
    assert np.isclose(found.members["mass"][0], 0.25)


def test_jaccard_of_equal_disjoint_and_random_sets():
    sets = np.zeros((3, 2, 6), bool)
    sets[:, 0, :2] = True
    for i in range(3):
        sets[i, 1, 2 * i : 2 * i + 2] = True
    assert jaccard(sets).tolist() == [1, 0]
    rng = np.random.default_rng(0)
    drawn = top_sets(rng.random((600, 1, 16)), 4)
    assert abs(jaccard(drawn[:60])[0] - random_jaccard(4, 16)) < 0.01


def test_nano_s_planted_layer_has_no_committee_over_languages(taught, planted):
    found = committee(taught, resamples=20)
    row = found.layers.where(layer=planted.layer)
    assert row["members"][0] == 0 and row["jaccard"][0] < 0.1
    assert planted.layer not in found.members["layer"]


def test_impossible_sizes_are_refused(by_hand):
    with pytest.raises(ValueError, match="size 16"):
        committee(routing_with(by_hand, always=True), size=16)
