"""Routing signatures: the planted layer alone tells the labels, shuffled labels tell nothing."""

import numpy as np
import pytest

from gptoss_workbench.routing.signature import signature_classifier, signatures


@pytest.fixture
def one_layer_knows(by_hand):
    """Layer 1 follows the prompt's domain, layers 0 and 2 do not."""
    rng = np.random.default_rng(0)
    prompt = np.repeat(np.arange(60), 8)
    experts = rng.integers(0, 6, (len(prompt), 3, 1))
    experts[:, 1, 0] = prompt % 3 * 2 + rng.integers(0, 2, len(prompt))
    return by_hand(experts, n_experts=6, prompt=prompt, labels=list("abc") * 20)


def test_signatures_are_shares_that_sum_to_k(one_layer_knows, routed):
    found = signatures(one_layer_knows)
    assert found.prompts.tolist() == list(range(60))
    np.testing.assert_allclose(found.shares.sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(signatures(routed).shares.sum(-1), routed.k, rtol=1e-6)
    record = one_layer_knows.where(prompt=7).record()
    wanted = np.bincount(record.experts[:, 2, 0], minlength=6) / 8
    np.testing.assert_allclose(found.shares[7, 2], wanted, rtol=1e-6)


def test_the_planted_layer_alone_tells_every_label(one_layer_knows):
    found = signature_classifier(one_layer_knows, shuffles=1)
    table = found.accuracy
    assert table["layers"].tolist() == ["all", "0", "1", "2"]
    assert table.where(layers="1")["accuracy"][0] == 1
    assert (table.where(layers=["0", "2"])["accuracy"] < 0.6).all()
    assert (table["shuffled"] < 0.6).all() and np.isclose(table["chance"][0], 1 / 3)
    right = found.confusion.rows(found.confusion["true"] == found.confusion["predicted"])
    assert right["share"].mean() > 0.9 and found.confusion["n"].sum() == 60


def test_nano_s_languages_are_read_and_shuffled_ones_are_not(taught, planted):
    table = signature_classifier(taught, folds=3, shuffles=2).accuracy
    assert table.where(layers=str(planted.layer))["accuracy"][0] == 1
    assert table.where(layers=str(planted.layer))["shuffled"][0] < 0.6


def test_labels_are_needed(by_hand):
    with pytest.raises(ValueError, match="no labels"):
        signature_classifier(by_hand(np.zeros((3, 1, 1)), n_experts=2))
