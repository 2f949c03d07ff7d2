"""Unembedding: W_U x, nothing added, nothing capped, rounded once."""

import pytest
import torch

from gptoss_kernels import linear as kernel
from gptoss_kernels.unembed import unembed


@pytest.fixture
def inputs():
    g = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 45, generator=g), torch.randn(101, 45, generator=g).bfloat16()


def test_equals_float64(inputs):
    x, weight = inputs
    exact = x.double() @ weight.double().mT
    torch.testing.assert_close(unembed(x, weight).double(), exact, rtol=1e-5, atol=1e-5)


def test_has_no_bias_and_no_cap(inputs):
    x, weight = inputs
    logits = unembed(1e3 * x, weight)
    assert logits.abs().max() > 1e3
    torch.testing.assert_close(logits, 1e3 * unembed(x, weight), rtol=1e-5, atol=1e-2)
    assert (unembed(torch.zeros_like(x), weight) == 0).all()


def test_bfloat16_is_rounded_once(inputs):
    x, weight = inputs
    x = x.bfloat16()
    assert torch.equal(unembed(x, weight), unembed(x.float(), weight).bfloat16())


def test_a_walk_over_the_vocabulary_gives_the_same(inputs, monkeypatch):
    x, weight = inputs
    whole = unembed(x, weight)
    monkeypatch.setattr(kernel, "TILE", 10 * 45)
    torch.testing.assert_close(unembed(x, weight), whole)


def test_the_gradient_equals_float64_autograd(inputs):
    x, weight = inputs
    ours, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    unembed(ours, weight)[..., 7].sum().backward()
    (exact @ weight.double().mT)[..., 7].sum().backward()
    torch.testing.assert_close(ours.grad.double(), exact.grad, rtol=1e-5, atol=1e-5)
