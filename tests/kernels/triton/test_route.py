"""Triton's routing: the reference's choice, ties and NaN included, and its weights."""

from contextlib import contextmanager

import pytest
import torch

from gptoss_kernels import route as plain
from gptoss_kernels.triton import launch
from gptoss_kernels.triton import linear as module
from gptoss_kernels.triton.linear import linear
from gptoss_kernels.triton.route import choose, router, weigh


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("experts", "k"), [(1, 1), (7, 7), (32, 4), (128, 4)])
def test_the_choice_is_the_references(experts, k, dtype):
    logits = draw(2, 5, experts, dtype=dtype)
    assert torch.equal(choose(logits, k), plain.choose(logits, k))


def test_ties_go_to_the_lower_number_and_nan_comes_first():
    nan, inf = torch.nan, torch.inf
    logits = torch.tensor([
        [0.0, -0.0, 0.0, -0.0, 0.0], [1.0, nan, 2.0, nan, inf], [-inf, -inf, -inf, 1.0, -inf],
        [3.0, 3.0, 5.0, 3.0, 5.0], [-1.0, -2.0, -1.0, -1e-42, 1e-42],
    ])[None]  # fmt: skip
    for k in (1, 3, 5):
        assert torch.equal(choose(logits, k), plain.choose(logits, k))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [1, 3, 4])
def test_weights_and_their_gradient_are_the_references(k, dtype):
    grads = []
    for body in (weigh, plain.weigh):
        logits = draw(2, 3, 9, dtype=dtype).requires_grad_()
        weights = body(logits, plain.choose(logits, k))
        assert weights.dtype == torch.float32
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3))
        (weights * draw(2, 3, k, seed=1)).sum().backward()
        assert logits.grad is not None and logits.grad.dtype == dtype
        grads.append((weights.detach(), logits.grad))
    torch.testing.assert_close(grads[0][0], grads[1][0])
    torch.testing.assert_close(grads[0][1], grads[1][1])


def test_company_changes_nothing():
    logits = draw(3, 4, 32)
    indices = choose(logits, 4)
    whole = weigh(logits, indices)
    assert torch.equal(weigh(logits[1:2, 2:3], indices[1:2, 2:3])[0, 0], whole[1, 2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wanted", [None, torch.float32])
@pytest.mark.parametrize("rows, few", [(1, 64), (19, 64), (19, 1)])
def test_the_router_has_the_bits_of_its_three_operations(rows, few, wanted, dtype, monkeypatch):
    """With few rows the sums come in parts, of which bfloat16 has 2 launches, not 4."""
    monkeypatch.setattr(module, "FEW", few)
    monkeypatch.setattr(module, "PIECE", 40)
    x, weight = draw(1, rows, 75, dtype=dtype), draw(9, 75, seed=1, dtype=torch.bfloat16)
    bias = draw(9, seed=2, dtype=torch.bfloat16)
    with counting(monkeypatch) as seen:
        logits, route = router(x, weight, bias, 3, dtype=wanted)
    assert seen == ["split_kernel"] * (dtype == torch.float32) + ["linear_kernel", "_route_kernel"]
    with counting(monkeypatch) as seen:
        each = linear(x, weight, bias, dtype=wanted)
        indices = choose(each, 3)
        weights = weigh(each, indices)
    assert ("merge_kernel" in seen) == (few == 64)
    assert logits.dtype == each.dtype and torch.equal(logits, each)
    assert torch.equal(route.indices, indices) and torch.equal(route.weights, weights)


@contextmanager
def counting(monkeypatch):
    launched = []
    monkeypatch.setattr(launch, "counting", True)
    monkeypatch.setattr(launch, "launched", launched)
    yield launched
    monkeypatch.setattr(launch, "counting", False)


def test_the_router_puts_nan_first_and_the_lower_of_equals():
    bias = torch.tensor([0.0, 1, 1, torch.nan, 0])
    logits, route = router(torch.ones(1, 2, 4), torch.zeros(5, 4), bias, 4)
    assert torch.equal(route.indices, plain.choose(logits, 4))
    assert route.indices[0, 0].tolist() == [3, 1, 2, 0]


def test_what_does_not_fit_is_refused():
    logits = draw(1, 2, 9)
    with pytest.raises(ValueError, match="k = 10, but there are 9 experts"):
        choose(logits, 10)
    with pytest.raises(ValueError, match="are not of the same tokens"):
        weigh(logits, torch.zeros(1, 3, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="x ends in 9 but the weight maps 8 inputs"):
        router(logits, draw(5, 8), draw(5), 2)
