"""Dense projection: the stored bfloat16 weight is widened, sums are float32, rounded once."""

from inspect import unwrap

import pytest
import torch

from gptoss_kernels import linear as kernel
from gptoss_kernels.linear import linear


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def inputs():
    return draw(2, 3, 45), draw(37, 45, seed=1).bfloat16(), draw(37, seed=2).bfloat16()


def test_equals_float64(inputs):
    x, weight, bias = inputs
    exact = x.double() @ weight.double().mT + bias.double()
    torch.testing.assert_close(linear(x, weight, bias).double(), exact, rtol=1e-5, atol=1e-5)


def test_bfloat16_is_rounded_once(inputs):
    x, weight, bias = inputs
    x = x.bfloat16()
    y = linear(x, weight, bias)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, linear(x.float(), weight, bias).bfloat16())


def test_the_result_can_stay_float32(inputs):
    x, weight, bias = inputs
    y = linear(x.bfloat16(), weight, bias, dtype=torch.float32)
    assert torch.equal(y, linear(x.bfloat16().float(), weight, bias))


def test_tiles_give_what_one_tile_gives(inputs, monkeypatch):
    x, weight, bias = inputs
    whole = linear(x, weight, bias)
    monkeypatch.setattr(kernel, "TILE", 7 * 45)
    torch.testing.assert_close(linear(x, weight, bias), whole)
    x.requires_grad_()
    linear(x, weight, bias).sum().backward()
    torch.testing.assert_close(x.grad, weight.float().sum(0).expand(2, 3, -1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_equals_autograd_on_float64_weights(inputs, dtype):
    x, weight, bias = inputs
    grad = draw(2, 3, 37, seed=3)
    ours = x.to(dtype).clone().requires_grad_()
    exact = x.to(dtype).double().requires_grad_()
    (linear(ours, weight, bias, dtype=torch.float32) * grad).sum().backward()
    ((exact @ weight.double().mT) * grad.double()).sum().backward()
    assert ours.grad.dtype == dtype
    if dtype == torch.float32:
        torch.testing.assert_close(ours.grad.double(), exact.grad, rtol=1e-5, atol=1e-5)
    else:
        torch.testing.assert_close(ours.grad, exact.grad.bfloat16())


def test_values_are_the_same_with_and_without_a_gradient(inputs):
    x, weight, bias = inputs
    with torch.no_grad():
        plain = linear(x, weight, bias)
    assert torch.equal(linear(x.requires_grad_(), weight, bias), plain)


def test_the_weight_gets_no_gradient(inputs):
    x, weight, _ = inputs
    y = linear(x.requires_grad_(), weight.float().requires_grad_())
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.shape == x.shape


def test_a_width_that_does_not_fit_is_refused(inputs):
    x, weight, _ = inputs
    with pytest.raises(ValueError, match="x ends in 44 but the weight maps 45 inputs"):
        unwrap(linear)(x[..., :44], weight)
