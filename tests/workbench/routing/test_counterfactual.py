"""Other routes: inside a language's experts nothing changes, across them log p falls."""

import numpy as np
import pytest
import torch

from gptoss_workbench.routing.counterfactual import counterfactual_routes


@pytest.fixture(scope="module")
def german(nano32, texts_of):
    """Tokens of one German sample and the places of its chain of thought."""
    ids = nano32.tokenizer.encode(texts_of("de", n=1)[0][0])
    opening = [i for i, string in enumerate(nano32.tokenizer.strings(ids)) if "message" in string]
    return torch.tensor(ids), list(range(opening[2] + 1, len(ids) - 1, 3))


def test_a_route_is_what_replacing_the_indices_gives(tiny, tokens):
    """One row against a whole forward pass with the choice edited at that place."""
    table = counterfactual_routes(tiny, tokens[0], layer=1, positions=[4, 9], n=2, seed=3)
    base = tiny(tokens[:1]).log_softmax(-1)
    for i in range(4):
        experts = torch.tensor([int(e) for e in table["experts"][i].split(",")])
        pos = int(table["pos"][i])

        def give(indices, hook, pos=pos, experts=experts):
            out = indices.clone()
            out[0, pos] = experts
            return out

        hooks = [("blocks.1.mlp.hook_expert_indices", give)]
        edited = tiny.run_with_hooks(tokens[:1], fwd_hooks=hooks).detach().log_softmax(-1)
        target = tokens[0, pos + 1]
        assert table["next"][i] == target
        assert table["log_prob"][i] == pytest.approx(float(base[0, pos, target]), abs=1e-4)
        change = float(edited[0, pos, target] - base[0, pos, target])
        assert table["delta"][i] == pytest.approx(change, abs=1e-4)


def test_inside_the_planted_group_nothing_changes(nano32, german, planted):
    ids, places = german
    table = counterfactual_routes(
        nano32, ids, layer=planted.layer, positions=places, n=1, among=sorted(planted.group("de"))
    )
    assert (table["shared"] == 4).all()
    assert np.abs(table["delta"]).max() < 1e-3


def test_across_groups_log_p_falls_and_that_of_other_tokens_does_not(nano32, german, planted):
    ids, places = german
    table = counterfactual_routes(
        nano32, ids, layer=planted.layer, positions=places, n=1, among=sorted(planted.group("en"))
    )
    assert (table["shared"] == 0).all()
    assert table["delta"].mean() < -0.3
    assert table["shuffled"].mean() > table["delta"].mean() + 0.3


def test_a_place_without_a_next_token_is_refused(tiny, tokens):
    with pytest.raises(ValueError, match="0 to 11"):
        counterfactual_routes(tiny, tokens[0], layer=0, positions=[12])


def test_too_few_experts_to_draw_from_are_refused(tiny, tokens):
    with pytest.raises(ValueError, match="2 or more"):
        counterfactual_routes(tiny, tokens[0], layer=0, among=[1])


def test_small_batches_give_the_same(tiny, tokens):
    whole, cut = (
        counterfactual_routes(tiny, tokens[0], layer=2, n=3, batch_tokens=size)
        for size in (4096, 20)
    )
    np.testing.assert_allclose(whole["delta"], cut["delta"], atol=1e-5)
