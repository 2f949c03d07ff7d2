"""REAP's saliency: exact on hand-made traces, halved with the down projection on a model."""

import numpy as np
import pytest
import torch

from gptoss_workbench.model import GptOss
from gptoss_workbench.routing.saliency import expert_saliency, saliency_cut


@pytest.fixture
def exact(by_hand):
    experts = [[[0, 1]], [[0, 2]], [[1, 2]], [[0, 1]]]
    weights = np.array([[[0.75, 0.25]]] * 4, np.float32)
    norms = np.array([[[4, 2]], [[8, 1]], [[2, 1]], [[4, 6]]], np.float32)
    return by_hand(experts, n_experts=4, weights=weights, norms=norms)


def test_saliency_is_the_mean_of_weight_times_norm(exact):
    table = expert_saliency(exact)
    assert table["saliency"].tolist() == pytest.approx(
        [(3 + 6 + 3) / 3, (0.5 + 1.5 + 1.5) / 3, 0.25, 0]
    )
    assert table["ean"].tolist() == [16, 10, 2, 0]
    assert table["frequency"].tolist() == [0.75, 0.75, 0.5, 0]
    assert (table["low"] <= table["saliency"]).all() and (table["saliency"] <= table["high"]).all()


def test_a_never_routed_expert_has_saliency_zero(exact):
    table = expert_saliency(exact).where(expert=3)
    assert table["saliency"][0] == table["high"][0] == table["n"][0] == 0


def test_without_norms_it_says_how_to_trace_them(by_hand):
    with pytest.raises(ValueError, match=r"trace_routing\(.*keep=\('norms',\)"):
        expert_saliency(by_hand([[[0]]] * 3, n_experts=2))


def test_halving_a_down_projection_halves_its_saliency(nano32, texts_of, routing_of):
    """In the last layer, so that no routing changes; halving exponent and bias is exact."""
    texts, _ = texts_of(n=2)
    before = expert_saliency(routing_of(nano32, texts), resamples=2)
    tensors = dict(nano32.checkpoint_tensors())
    last, expert = nano32.n_layers - 1, 3
    name = f"model.layers.{last}.mlp.experts.down_proj"
    for part, change in (("scales", lambda x: x - 1), ("bias", lambda x: x / 2)):
        tensor = tensors[f"{name}_{part}"].clone()
        tensor[expert] = change(tensor[expert])
        tensors[f"{name}_{part}"] = tensor
    halved = GptOss(nano32.config, tensors, dtype=torch.float32, tokenizer=nano32.tokenizer)
    after = expert_saliency(routing_of(halved, texts), resamples=2)
    ratio = after["saliency"] / np.maximum(before["saliency"], 1e-9)
    changed = (after["layer"] == last) & (after["expert"] == expert)
    assert before["n"][changed] > 0
    assert ratio[changed] == pytest.approx(0.5, rel=2e-3)  # norms are kept in half precision
    others = ~changed & (before["n"] > 0)
    assert ratio[others] == pytest.approx(np.ones(others.sum()), rel=2e-3)


def test_the_cut_curve_ends_at_everything_and_scores_delete_less_than_chance(exact):
    cut = saliency_cut(expert_saliency(exact))
    for order in ("saliency", "ean", "frequency", "random"):
        rows = cut.where(order=order)
        assert rows["dropped"].tolist() == [0, 1, 2, 3, 4]
        assert rows["saliency"][[0, -1]].tolist() == [0, 1]
        assert (np.diff(rows["traffic"]) >= 0).all()
    by_score = cut.where(order="saliency")
    assert by_score["saliency"][:3].tolist() == pytest.approx([0, 0, 0.25 / (4 + 3.5 / 3 + 0.25)])
    assert (by_score["saliency"] <= cut.where(order="random")["saliency"] + 1e-12).all()
