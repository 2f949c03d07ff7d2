"""RMSNorm: widen, divide, weigh, then round once."""

import math

import pytest
import torch

from gptoss_kernels.rms_norm import NormTap, rms_norm


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_equals_a_float64_loop():
    x, weight = 3 * draw(2, 3, 45), draw(45, seed=1)
    y = rms_norm(x, weight, 1e-5)
    for row, place in [(0, 0), (1, 2)]:
        values = x[row, place].double().tolist()
        scale = math.sqrt(sum(v * v for v in values) / 45 + 1e-5)
        expected = torch.tensor([v / scale * float(w) for v, w in zip(values, weight, strict=True)])
        torch.testing.assert_close(y[row, place], expected)


def test_rounds_after_the_weight_not_before():
    x, weight = draw(1, 5, 257).bfloat16(), draw(257, seed=1).bfloat16()
    wide = x.double()
    exact = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    once = (exact * weight.double()).bfloat16()
    twice = exact.bfloat16() * weight
    y = rms_norm(x, weight)
    assert y.dtype == torch.bfloat16
    assert (y == once).float().mean() > 0.99  # float32 against float64 next to a rounding edge
    assert (y == twice).float().mean() < 0.9


def test_eps_keeps_a_zero_row_at_zero():
    assert torch.equal(rms_norm(torch.zeros(1, 1, 33), torch.ones(33)), torch.zeros(1, 1, 33))


@pytest.mark.parametrize("size", [1e-4, 1e15])
def test_tiny_and_huge_rows_stay_finite(size):
    y = rms_norm(size * draw(1, 2, 64), torch.ones(64))
    assert y.isfinite().all()
    if size > 1:
        torch.testing.assert_close(y.square().mean(-1), torch.ones(1, 2))


def test_the_tap_sees_and_replaces_scale_and_normalized():
    x, weight, seen = draw(1, 2, 33), draw(33, seed=1), {}

    def halve(scale):
        seen["scale"] = scale
        return scale / 2

    def keep(normalized):
        seen["normalized"] = normalized
        return normalized

    y = rms_norm(x, weight, tap=NormTap(halve, keep))
    assert seen["scale"].shape == (1, 2, 1) and seen["normalized"].dtype == torch.float32
    torch.testing.assert_close(y, 2 * rms_norm(x, weight))
    torch.testing.assert_close(seen["normalized"] * weight, y)


def test_the_gradient_equals_float64_autograd():
    x, weight, grad = draw(2, 3, 45), draw(45, seed=1), draw(2, 3, 45, seed=2)
    ours, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    (rms_norm(ours, weight) * grad).sum().backward()
    scale = (exact.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    (exact / scale * weight.double() * grad.double()).sum().backward()
    torch.testing.assert_close(ours.grad.double(), exact.grad, rtol=1e-5, atol=1e-5)
