"""Routing: the k largest logits, best first, weighed by a softmax over those k."""

import pytest
import torch

from gptoss_kernels.route import choose, route, weigh


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("experts", "k"), [(5, 1), (7, 4), (3, 3), (33, 2)])
def test_the_largest_logits_are_chosen_in_order(experts, k):
    logits = draw(2, 5, experts)
    indices, weights = route(logits, k)
    for row in range(2):
        for place in range(5):
            values = logits[row, place].tolist()
            expected = sorted(range(experts), key=lambda e: -values[e])[:k]
            assert indices[row, place].tolist() == expected
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 5))
    assert (weights[..., :-1] >= weights[..., 1:]).all()


def test_ties_choose_the_lower_expert():
    logits = torch.tensor([[[1.0, 2.0, 2.0, 1.0, 2.0, 0.0]]])
    assert choose(logits, 4).tolist() == [[[1, 2, 4, 0]]]
    assert choose(torch.zeros(1, 1, 128), 4).tolist() == [[[0, 1, 2, 3]]]


def test_weights_equal_a_renormalised_softmax_over_all_experts():
    logits = draw(3, 4, 9)
    indices, weights = route(logits, 3)
    share = logits.softmax(-1).gather(-1, indices)
    torch.testing.assert_close(weights, share / share.sum(-1, keepdim=True))


def test_one_expert_has_weight_one():
    assert torch.equal(route(draw(1, 3, 5), 1).weights, torch.ones(1, 3, 1))


def test_weights_of_other_experts_can_be_asked_for():
    logits = draw(1, 1, 6)
    indices = torch.tensor([[[5, 0]]])
    expected = logits[0, 0, [5, 0]].softmax(-1)
    torch.testing.assert_close(weigh(logits, indices)[0, 0], expected)


def test_huge_logits_do_not_overflow():
    weights = route(torch.tensor([[[3e4, 2e4, -3e4]]]), 2).weights
    assert torch.equal(weights, torch.tensor([[[1.0, 0.0]]]))


def test_the_gradient_reaches_chosen_logits_only():
    logits = draw(1, 2, 5).requires_grad_()
    indices, weights = route(logits, 2)
    weights[..., 0].sum().backward()
    touched = torch.zeros(1, 2, 5, dtype=torch.bool).scatter_(-1, indices, True)
    assert torch.equal(logits.grad != 0, touched)


@pytest.mark.parametrize("k", [0, 6])
def test_an_impossible_k_is_refused(k):
    with pytest.raises(ValueError, match=f"k = {k}, but there are 5 experts"):
        route(draw(1, 1, 5), k)
