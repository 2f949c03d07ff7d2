"""Features that predict routing: a language feature predicts its group, a shuffled one does not."""

import numpy as np
import pytest

from gptoss_workbench.routing.feature_routing import expert_cards, feature_routing

SPOKEN = ("user", "analysis", "final")


@pytest.fixture(scope="module")
def nanos(nano32, texts_of, routing_of, planted):
    """Layer 2 on two languages, and features: German, English, and three of noise."""
    texts, labels = texts_of("de", "en", n=4)
    routing = routing_of(nano32, texts, labels).where(voice=SPOKEN, layer=planted.layer)
    prompt = routing.record().prompt
    german = np.array([labels[i] == "de" for i in prompt])
    noise = np.random.default_rng(0).random((len(prompt), 3)) < 0.3
    return routing, np.column_stack([noise, german, ~german]).astype(float)


def test_precision_recall_and_f1_are_exact(by_hand):
    routing = by_hand([[[0]], [[0]], [[0]], [[1]]], n_experts=2)
    features = np.array([[1, 0.4], [1, 0], [0, 0], [1, 1]])
    table = feature_routing(routing, features, threshold=0.3, top=2)
    best = table.where(expert=0, feature=0)
    assert [best[c][0] for c in ("precision", "recall", "f1")] == pytest.approx([2 / 3] * 3)
    assert best["base"][0] == 0.75 and best["on"][0] == 3
    other = table.where(expert=1, feature=1)
    assert [other[c][0] for c in ("precision", "recall")] == [0.5, 1.0]


def test_the_language_feature_predicts_the_planted_group(nanos, planted):
    routing, features = nanos
    table = feature_routing(routing, features, names=["a", "b", "c", "German", "English"], top=1)
    german = table.where(expert=sorted(planted.group("de")))
    assert german["name"].tolist() == ["German"] * 4
    assert (german["recall"] > 0.97).all() and (german["precision"] > 0.97).all()


def test_shuffled_features_predict_at_the_base_rate(nanos, planted):
    routing, features = nanos
    shuffled = np.random.default_rng(1).permutation(features)
    table = feature_routing(routing, shuffled, top=5).where(expert=sorted(planted.group("de")))
    assert np.abs(table["precision"] - table["base"]).max() < 0.15


def test_cards_hold_on_prompts_that_did_not_choose_them(nanos, planted):
    routing, features = nanos
    cards = expert_cards(routing, features, names=["a", "b", "c", "German", "English"], seed=1)
    german = cards.where(expert=sorted(planted.group("de")))
    assert german["features"].tolist() == ["German"] * 4
    assert (german["recall"] > 0.97).all()
    assert (german["f1"] > german["shuffled_f1"] + 0.2).all()


def test_a_union_finds_both_of_its_features(by_hand):
    """The expert takes tokens with feature 0 or 1; token ids say nothing."""
    rng = np.random.default_rng(0)
    features = rng.random((400, 6)) < 0.2
    goes = features[:, 0] | features[:, 1]
    experts = np.where(goes, 1, 0)[:, None, None]
    routing = by_hand(
        experts, n_experts=2, prompt=np.repeat(np.arange(20), 20), token=rng.integers(0, 9, 400)
    )
    card = expert_cards(routing, features.astype(float)).where(expert=1)
    assert sorted(card["features"][0].split(" + ")) == ["0", "1"]
    assert card["f1"][0] == 1 and card["bigram_f1"][0] < 0.6 and card["shuffled_f1"][0] < 0.6


def test_bigrams_predict_a_hash_of_token_pairs(by_hand):
    rng = np.random.default_rng(0)
    token = rng.integers(0, 3, 600)
    prompt = np.repeat(np.arange(30), 20)
    before = np.where(np.diff(prompt, prepend=-1) == 0, np.roll(token, 1), 0)
    experts = ((token + before) % 2)[:, None, None]
    routing = by_hand(experts, n_experts=2, prompt=prompt, token=token)
    cards = expert_cards(routing, rng.random((600, 2)) - 0.5)
    assert (cards["bigram_f1"] > 0.93).all()
    assert (cards["f1"] < 0.8).all()


def test_features_of_another_length_are_refused(by_hand):
    with pytest.raises(ValueError, match="each of the 3"):
        feature_routing(by_hand([[[0]]] * 3, n_experts=2), np.ones((4, 2)))
