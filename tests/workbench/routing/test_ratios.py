"""Sums by prompt are exact however they are cut; intervals take prompts as the unit."""

import numpy as np
import pytest

from gptoss_workbench.intervals import wilson
from gptoss_workbench.routing import ratios
from gptoss_workbench.routing.ratios import Ratio, clusters


@pytest.fixture
def random_routing(by_hand):
    rng = np.random.default_rng(0)
    experts = rng.permuted(np.tile(np.arange(8), (60, 2, 1)), axis=-1)[..., :3]
    prompt = np.sort(rng.integers(0, 9, 60))
    weights = rng.dirichlet(np.ones(3), (60, 2)).astype(np.float32)
    logits = rng.normal(size=(60, 2, 8)).astype(np.float32)
    labels = ["a", "b", "c"] * 3
    return by_hand(
        experts, n_experts=8, prompt=prompt, weights=weights, logits=logits, labels=labels
    )


@pytest.mark.parametrize("piece", [1, 100, 1 << 22])
@pytest.mark.parametrize("of", ratios.OF)
def test_sums_by_prompt_are_those_of_a_loop_over_tokens(random_routing, of, piece, monkeypatch):
    monkeypatch.setattr(ratios, "PIECE", piece)
    record = random_routing.record()
    wanted = np.zeros((9, 2, 8))
    soft = ratios.probabilities(record)
    for t in range(60):
        for layer in range(2):
            if of == "probabilities":
                wanted[record.prompt[t], layer] += soft[t, layer]
                continue
            for slot in range(3):
                value = 1 if of == "choices" else record.weights[t, layer, slot]
                wanted[record.prompt[t], layer, record.experts[t, layer, slot]] += value
    found = np.zeros_like(wanted)
    tokens = np.zeros(9)
    for each in clusters(random_routing, "label", of):
        np.add.at(found, each.prompt, each.sums)
        np.add.at(tokens, each.prompt, each.tokens)
        assert (each.group == each.prompt % 3).all()
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert (tokens == np.bincount(record.prompt, minlength=9)).all()


def test_probabilities_need_the_logits(by_hand):
    routing = by_hand(np.zeros((2, 1, 1)), n_experts=2)
    with pytest.raises(ValueError, match="keep=\\('logits',\\)"):
        list(clusters(routing, None, "probabilities"))


def interval_of(hits, of):
    ratio = Ratio(1, (), ())
    ratio.add(np.zeros(len(hits), int), np.array(hits, float), np.array(of, float))
    low, high = ratio.interval()
    return float(ratio.share[0]), float(low[0]), float(high[0])


def test_prompts_of_one_token_give_wilsons_interval():
    hits = np.repeat([1.0, 0.0], [30, 70])
    share, low, high = interval_of(hits, np.ones(100))
    wanted = [float(x) for x in wilson(np.array(30 * 0.99), np.array(99))]
    assert share == 0.3 and np.allclose([low, high], wanted, atol=2e-3)


def test_a_prompt_of_many_equal_tokens_counts_as_one():
    hits = np.repeat([1.0, 0.0], [30, 70])
    assert np.allclose(interval_of(hits * 50, np.full(100, 50.0)), interval_of(hits, np.ones(100)))


def test_a_share_of_one_is_as_sure_as_its_prompts_are_many():
    _, low, high = interval_of([10.0] * 20, [10.0] * 20)
    assert high == 1 and np.isclose(low, wilson(np.array(20), np.array(20))[0])


def test_the_interval_holds_the_truth_19_times_in_20():
    rng, inside = np.random.default_rng(0), 0
    for _ in range(300):
        prompt_share = rng.beta(2, 6, 40)
        tokens = rng.integers(5, 60, 40)
        _, low, high = interval_of(rng.binomial(tokens, prompt_share), tokens)
        inside += low <= 0.25 <= high
    assert 0.9 < inside / 300 < 0.99
