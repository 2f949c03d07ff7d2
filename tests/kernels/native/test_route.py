"""Native routing: the choice of the reference, weights to the last few bits."""

import pytest
import torch

from gptoss_kernels import route as reference
from gptoss_kernels.native import library
from gptoss_kernels.native.route import choose, weigh


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("experts", "k"), [(5, 1), (7, 4), (3, 3), (33, 20), (128, 4)])
def test_equals_the_reference(isa, experts, k):
    logits = draw(2, 5, experts)
    indices = choose(logits, k)
    assert torch.equal(indices, reference.choose(logits, k))
    torch.testing.assert_close(weigh(logits, indices), reference.weigh(logits, indices))


def test_ties_and_nan_are_ordered_as_the_reference_orders_them(isa):
    logits = draw(4, 30, 9).round()
    logits[0, :, 3], logits[1, :, ::2], logits[2, :, 1:4] = torch.nan, torch.nan, -torch.inf
    logits[3, :, 5], logits[3, :, 6] = 0.0, -0.0
    for k in (1, 4, 9):
        assert torch.equal(choose(logits, k), reference.choose(logits, k))


def test_company_changes_nothing():
    logits = draw(3, 50, 32)
    indices = choose(logits, 4)
    for name in library.isas():
        with library.using(name):
            whole = weigh(logits, indices)
            assert torch.equal(weigh(logits[1:2, 7:8], indices[1:2, 7:8])[0, 0], whole[1, 7])


def test_huge_and_banned_logits(isa):
    logits = torch.tensor([[[3e4, 2e4, -torch.inf, -3e4]]])
    assert weigh(logits, torch.tensor([[[0, 1, 2]]])).tolist() == [[[1, 0, 0]]]
    gone = torch.full((1, 1, 3), -torch.inf)
    indices = torch.tensor([[[0, 1]]])
    assert weigh(gone, indices).isnan().all() and reference.weigh(gone, indices).isnan().all()


def test_bfloat16_logits_are_widened(isa):
    logits = draw(2, 3, 9).bfloat16()
    indices = choose(logits, 3)
    assert torch.equal(indices, reference.choose(logits, 3))
    assert weigh(logits, indices).dtype == torch.float32


def test_the_gradient_equals_the_references(isa):
    indices, grads = reference.choose(draw(2, 5, 9), 4), []
    for body in (weigh, reference.weigh):
        logits = draw(2, 5, 9).requires_grad_()
        (body(logits, indices) * draw(2, 5, 4, seed=1)).sum().backward()
        grads.append(logits.grad)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("k", [0, 6])
def test_an_impossible_k_is_refused(k):
    with pytest.raises(ValueError, match=f"k = {k}, but there are 5 experts"):
        choose(draw(1, 1, 5), k)


@pytest.mark.parametrize("expert", [-1, 5])
def test_an_expert_that_does_not_exist_is_refused(expert):
    with pytest.raises(IndexError, match="names nothing"):
        weigh(draw(1, 1, 5), torch.tensor([[[0, expert]]]))
