"""Load: exact values of balanced and collapsed routers, bounds, and nano."""

import numpy as np
import pytest

from gptoss_workbench.routing.load import cv, entropy, gini, load_balance


def routing_of_columns(by_hand, experts, **more):
    """A trace of one layer from experts [token, k], one token a prompt."""
    return by_hand(np.asarray(experts)[:, None], **more)


def test_a_balanced_router_has_cv_0_gini_0_full_entropy_and_aux_1(by_hand):
    experts = [[i % 8, (i + 1) % 8] for i in range(64)]
    table = load_balance(routing_of_columns(by_hand, experts, n_experts=8))
    assert table["cv"][0] == 0 and np.isclose(table["gini"][0], 0) and table["dead"][0] == 0
    assert np.isclose(table["entropy"][0], 3) and np.isclose(table["aux_loss"][0], 1)
    assert table["group"].tolist() == ["text"] and table["n"][0] == 64


def test_all_tokens_on_the_same_experts_give_aux_e_over_k(by_hand):
    table = load_balance(routing_of_columns(by_hand, [[2, 5]] * 30, n_experts=8))
    assert np.isclose(table["aux_loss"][0], 8 / 2) and table["dead"][0] == 6
    assert np.isclose(table["entropy"][0], 1) and np.isclose(table["cv"][0], np.sqrt(8 / 2 - 1))
    assert np.isclose(table["gini"][0], 1 - 2 / 8)


def test_router_probability_is_over_all_experts_where_logits_were_kept(by_hand):
    logits = np.zeros((30, 1, 8), np.float32)
    logits[..., [2, 5]] = 30
    sharp = routing_of_columns(by_hand, [[2, 5]] * 30, n_experts=8, logits=logits)
    flat = routing_of_columns(by_hand, [[2, 5]] * 30, n_experts=8, logits=logits * 0)
    assert np.isclose(load_balance(sharp)["aux_loss"][0], 4)
    assert np.isclose(load_balance(flat)["aux_loss"][0], 1)
    assert "softmax over all E" in repr(load_balance(flat))
    assert "over the kept k" in repr(load_balance(routing_of_columns(by_hand, [[0]], n_experts=2)))


def test_statistics_agree_with_their_textbook_forms():
    counts = np.array([1.0, 2, 3, 10])
    apart = np.abs(counts[:, None] - counts).sum() / (2 * 4 * counts.sum())
    assert np.isclose(gini(counts), apart)
    assert np.isclose(cv(counts), counts.std() / counts.mean())
    p = counts / counts.sum()
    assert np.isclose(entropy(counts), -(p * np.log2(p)).sum())
    assert gini(np.zeros(4)) == cv(np.zeros(4)) == entropy(np.zeros(4)) == 0


def test_bounds_come_from_prompts_and_hold_the_value(by_hand):
    rng = np.random.default_rng(0)
    favourite = rng.integers(0, 4, 40)
    experts = np.repeat(favourite, 25)[:, None]
    prompts = np.repeat(np.arange(40), 25)
    of_prompts = load_balance(routing_of_columns(by_hand, experts, n_experts=4, prompt=prompts))
    of_tokens = load_balance(routing_of_columns(by_hand, experts, n_experts=4))
    for table in (of_prompts, of_tokens):
        assert table["gini_low"][0] < table["gini"][0] < table["gini_high"][0]
    width = [float(t["gini_high"][0] - t["gini_low"][0]) for t in (of_prompts, of_tokens)]
    assert width[0] > 3 * width[1]


def test_bounds_do_not_depend_on_what_else_is_in_the_trace(by_hand):
    experts = np.random.default_rng(0).integers(0, 4, (60, 1))
    labels = ["a", "b"] * 30
    routing = routing_of_columns(by_hand, experts, n_experts=4, labels=labels)
    both, alone = (
        load_balance(routing, by="label"),
        load_balance(routing.where(label="b"), by="label"),
    )
    assert both.where(group="b")["cv_low"] == alone["cv_low"]


def test_nano_uses_a_language_s_own_experts_only_in_the_planted_layer(taught, planted):
    table = load_balance(taught.where(label="de"), by=None, resamples=20)
    assert table.where(layer=planted.layer)["dead"][0] == 12
    assert table.where(layer=planted.layer)["aux_loss"][0] > 3
    others = [layer for layer in range(4) if layer != planted.layer]
    assert (table.where(layer=others)["dead"] <= 4).all()
    pooled = load_balance(taught, by=None, resamples=20).where(layer=planted.layer)
    assert pooled["dead"][0] == 0 and pooled["cv"][0] < 0.7


def test_headers_are_left_out_unless_asked_for(routed):
    assert "header" not in load_balance(routed, resamples=5)["group"]
    with_headers = load_balance(routed, headers=True, resamples=5)
    assert "header" in with_headers["group"]
    assert "left out" in repr(load_balance(routed, resamples=5))
    with pytest.raises(ValueError, match="headers=True"):
        load_balance(routed.where(voice="header"))


def test_a_balanced_corpus_has_bounds_that_hold_0(by_hand):
    experts = [[i % 8, (i + 1) % 8] for i in range(64)]
    table = load_balance(routing_of_columns(by_hand, experts, n_experts=8))
    assert table["cv_low"][0] == table["cv"][0] == 0 < table["cv_high"][0]
    assert table["entropy_low"][0] < table["entropy"][0] == table["entropy_high"][0] == 3


def test_resamples_without_a_token_do_not_count(by_hand):
    three = routing_of_columns(by_hand, [[2, 5]] * 3, n_experts=8, prompt=[0, 1, 2])
    table = load_balance(three)
    assert np.isclose(table["entropy_low"][0], 1) and np.isclose(table["cv_low"][0], table["cv"][0])
    one = load_balance(routing_of_columns(by_hand, [[2, 5]] * 3, n_experts=8, prompt=[0, 0, 0]))
    assert np.isnan([one["cv_low"][0], one["entropy_high"][0], one["aux_low"][0]]).all()
