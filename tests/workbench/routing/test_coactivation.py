"""Co-activation: rows sum to k - 1, asymmetric iff loads differ, OLMoE's script, a null, nano."""

import numpy as np
import pytest

from gptoss_workbench.routing.coactivation import coactivation, coactivation_matrix


@pytest.fixture
def random_router(by_hand):
    experts = np.random.default_rng(0).permuted(np.tile(np.arange(8), (2000, 2, 1)), axis=-1)
    return by_hand(experts[..., :3], n_experts=8)


def test_rows_sum_to_k_minus_1(random_router, routed):
    for routing in (random_router, routed):
        table = coactivation(routing)
        for layer in routing.layers:
            sums = coactivation_matrix(table, layer=layer).sum(1)
            used = sums > 0
            np.testing.assert_allclose(sums[used], routing.k - 1, rtol=1e-12)


def test_a_random_router_reads_chance(random_router):
    table = coactivation(random_router)
    assert np.isclose(table["chance"][0], 2 / 7)
    assert (np.abs(table["share"] - 2 / 7) < 0.07).all()
    assert ((table["low"] <= 2 / 7) & (table["high"] >= 2 / 7)).mean() > 0.9


def test_planted_pairs_are_exact_and_asymmetric_where_loads_differ(by_hand):
    experts = [[[0, 1]]] * 30 + [[[1, 2]]] * 10
    matrix = coactivation_matrix(coactivation(by_hand(experts, n_experts=4)), layer=0)
    assert matrix[0, 1] == 1 and matrix[1, 0] == 0.75 and matrix[1, 2] == 0.25
    assert matrix[2, 1] == 1 and not matrix[3].any()
    even = by_hand([[[0, 1]]] * 5 + [[[2, 3]]] * 5, n_experts=4)
    matrix = coactivation_matrix(coactivation(even), layer=0)
    assert (matrix == matrix.T).all()


def test_order_of_choice_does_not_matter_but_does_to_the_script(by_hand):
    routing = by_hand([[[0, 1, 2]]] * 10, n_experts=4)
    turned = by_hand([[[1, 2, 0]]] * 10, n_experts=4)
    same = [coactivation_matrix(coactivation(each), layer=0) for each in (routing, turned)]
    assert (same[0] == same[1]).all()
    script = coactivation(routing, script_compat=True)
    matrix = coactivation_matrix(script, layer=0)
    assert matrix[0, 1] == matrix[1, 2] == 1 and matrix[0, 2] == 0
    assert "rank-adjacent" in script.notes[0]


def test_the_script_s_chance_is_what_a_random_router_reads(random_router):
    table = coactivation(random_router, script_compat=True)
    assert np.isclose(table["share"].mean(), table["chance"][0], atol=1e-3)


def test_groups_and_too_small_k(by_hand, random_router):
    routing = by_hand([[[0, 1]], [[2, 3]]], n_experts=4, labels=["a", "b"])
    table = coactivation(routing, by="label")
    assert coactivation_matrix(table, layer=0, group="a")[0, 1] == 1
    assert coactivation_matrix(table, layer=0, group="b")[0, 1] == 0
    with pytest.raises(ValueError, match="no rows"):
        coactivation_matrix(table, layer=5, group="a")
    with pytest.raises(ValueError, match="k is 1"):
        coactivation(by_hand([[[0]]], n_experts=2))


def test_nano_s_planted_layer_keeps_to_its_groups(taught, planted):
    matrix = coactivation_matrix(coactivation(taught), layer=planted.layer)
    for lang in ("en", "de", "es", "fr"):
        own = sorted(planted.group(lang))
        assert matrix[np.ix_(own, own)].sum(1).mean() > 2.7
