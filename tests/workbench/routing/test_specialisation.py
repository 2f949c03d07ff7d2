"""Specialisation: shares sum to k, forced experts read 1 and 0, nano's planted layer, a null."""

import numpy as np
import pytest

from gptoss_workbench.routing.specialisation import specialisation, specialisation_baseline


@pytest.fixture
def forced(by_hand):
    """Domain a goes to experts 0 and 1, b to 2 and 3; layer 1 ignores the domain."""
    rng = np.random.default_rng(0)
    prompt = np.repeat(np.arange(40), 20)
    first = np.where(prompt % 2, 2, 0)
    start = rng.integers(0, 4, len(prompt))
    experts = np.stack(
        [np.stack([first, first + 1], 1), np.stack([start, (start + 1) % 4], 1)], axis=1
    )
    return by_hand(experts, n_experts=4, prompt=prompt, labels=["a", "b"] * 20)


def test_forced_experts_read_1_in_their_domain_and_0_outside(forced):
    table = specialisation(forced).where(layer=0)
    assert table.where(group="a")["share"].tolist() == [1, 1, 0, 0]
    assert table.where(group="b")["share"].tolist() == [0, 0, 1, 1]
    assert (table["chance"] == 0.5).all() and (table["n"] == 400).all()
    assert (table.where(group="a", expert=[0, 1])["low"] > 0.8).all()
    assert (table.where(group="a", expert=[2, 3])["high"] < 0.2).all()


def test_a_layer_that_ignores_the_domain_reads_chance(forced):
    table = specialisation(forced).where(layer=1)
    assert (np.abs(table["share"] - 0.5) < 0.08).all()
    assert ((table["low"] <= 0.5) & (table["high"] >= 0.5)).sum() >= 7


def test_shares_of_a_layer_sum_to_k(forced, routed):
    for routing, by in ((forced, "label"), (routed, "label"), (routed, "channel"), (routed, None)):
        table = specialisation(routing, by=by)
        for group in np.unique(table["group"]):
            for layer in routing.layers:
                total = table.where(group=group, layer=layer)["share"].sum()
                assert abs(total - routing.k) < 1e-12


def test_nano_s_planted_layer_gives_each_language_its_own_experts(taught, planted):
    table = specialisation(taught)
    own = {
        layer: np.mean([
            table.where(group=lang, layer=layer, expert=sorted(planted.group(lang)))["share"]
            for lang in ("en", "de", "es", "fr")
        ])
        for layer in taught.layers
    }  # fmt: skip
    assert own[planted.layer] > 0.95
    assert all(abs(own[i] - 0.25) < 0.1 for i in taught.layers if i != planted.layer)


def test_shuffled_labels_read_chance_even_in_the_planted_layer(routed, planted):
    from dataclasses import replace

    order = np.random.default_rng(0).permutation(len(routed.labels))
    shuffled = replace(routed, labels=tuple(routed.labels[i] for i in order))
    table = specialisation(shuffled).where(layer=planted.layer)
    own = [
        table.where(group=lang, expert=sorted(planted.group(lang)))["share"].mean()
        for lang in np.unique(table["group"])
    ]
    assert np.mean(own) < 0.6


def test_the_baseline_reads_what_is_planted_in_either_place(forced):
    record = forced.record()
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(len(record.token), 6)).astype(np.float32)
    blind = hidden.copy()
    hidden[:, 0] += 4 * (record.prompt % 2)
    table = specialisation_baseline(forced, {0: hidden, 1: hidden}, most=240)
    accuracy = {
        (row, of): a
        for row, of, a in zip(*(table[c] for c in ("layer", "read from", "accuracy")), strict=True)
    }
    assert accuracy[0, "experts"] == 1 and accuracy[0, "hidden"] > 0.9
    assert accuracy[1, "hidden"] > 0.9 and accuracy[1, "experts"] < 0.65
    null = specialisation_baseline(forced, {1: blind}, most=240)
    assert (np.abs(null["accuracy"] - 0.5) < 0.15).all()
    with pytest.raises(ValueError, match="a row for each"):
        specialisation_baseline(forced, {0: hidden[:5]})


def test_missing_labels_are_asked_for(by_hand):
    with pytest.raises(ValueError, match="no labels"):
        specialisation(by_hand(np.zeros((3, 1, 1)), n_experts=2))
