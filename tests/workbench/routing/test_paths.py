"""Paths of best experts: exact by hand, and nano's languages walk apart."""

import numpy as np
import pytest

from gptoss_workbench.routing.paths import expert_flow, expert_paths

SPOKEN = ("user", "analysis", "final")


def test_paths_are_counted_and_compared_with_independence(by_hand):
    routing = by_hand([[[0], [1]], [[0], [1]], [[1], [0]], [[1], [0]]], n_experts=2)
    table = expert_paths(routing)
    assert table["path"].tolist() == ["0>1", "1>0"]
    assert table["share"].tolist() == [0.5, 0.5] and table["lift"].tolist() == [2, 2]
    flow = expert_flow(routing)
    assert list(zip(flow["expert"], flow["next"], flow["n"], strict=True)) == [(0, 1, 2), (1, 0, 2)]
    assert flow["independent"].tolist() == [0.25, 0.25]


def test_independent_layers_have_lift_one(by_hand):
    both = np.array([[[a], [b]] for a in (0, 1) for b in (0, 1)] * 5)
    assert expert_paths(by_hand(both, n_experts=2))["lift"].tolist() == [1] * 4
    flow = expert_flow(by_hand(both, n_experts=2))
    assert flow["share"].tolist() == flow["independent"].tolist() == [0.25] * 4


def test_nanos_paths_belong_to_one_language_and_to_none_with_labels_shuffled(
    nano32, texts_of, routing_of
):
    texts, labels = texts_of(n=3)
    routing = routing_of(nano32, texts, labels).where(voice=SPOKEN)
    assert expert_paths(routing, by="label")["purity"] == pytest.approx(np.ones(20))
    shuffled = np.random.default_rng(0).permutation(labels).tolist()
    mixed = routing_of(nano32, texts, shuffled).where(voice=SPOKEN)
    assert expert_paths(mixed, by="label")["purity"].mean() < 0.95
