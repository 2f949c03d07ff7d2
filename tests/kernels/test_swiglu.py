"""Clamped SwiGLU: the gate is cut above, the linear half on both sides."""

import math
from inspect import unwrap

import pytest
import torch

from gptoss_kernels.swiglu import swiglu


def by_hand(gate: float, up: float, limit: float = 7.0) -> float:
    gate, up = min(gate, limit), min(max(up, -limit), limit)
    return gate / (1 + math.exp(-1.702 * gate)) * (up + 1)


VALUES = (-100.0, -50.0, -8.0, -7.0, -1.0, -0.0, 0.0, 0.3, 6.99, 7.0, 7.01, 40.0)


@pytest.mark.parametrize("limit", [7.0, 1.5])
def test_equals_the_formula_on_both_sides_of_the_limit(limit):
    gate, up = torch.cartesian_prod(torch.tensor(VALUES), torch.tensor(VALUES)).T
    y = swiglu(gate, up, limit)
    pairs = zip(gate.tolist(), up.tolist(), strict=True)
    torch.testing.assert_close(y, torch.tensor([by_hand(g, u, limit) for g, u in pairs]))


def test_a_gate_beyond_the_limit_changes_nothing():
    up = torch.tensor([0.5, -3.0])
    assert torch.equal(swiglu(torch.full((2,), 8.0), up), swiglu(torch.full((2,), 7.0), up))


def test_the_gate_has_no_lower_limit():
    gate, up = torch.tensor([-9.0]), torch.tensor([1.0])
    assert not torch.equal(swiglu(gate, up), swiglu(torch.tensor([-7.0]), up))


def test_up_at_minus_one_closes_the_neuron():
    assert swiglu(torch.tensor([3.0, -3.0, 50.0]), torch.full((3,), -1.0)).tolist() == [0, 0, 0]


def test_bfloat16_halves_are_widened_first():
    gate, up = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    y = swiglu(gate, up)
    assert y.dtype == torch.float32
    assert torch.equal(y, swiglu(gate.float(), up.float()))


def test_the_gradient_stops_at_the_limits():
    gate = torch.tensor([8.0, 2.0, 2.0, 2.0, -9.0]).requires_grad_()
    up = torch.tensor([0.5, 8.0, -8.0, 0.5, 0.5]).requires_grad_()
    swiglu(gate, up).sum().backward()
    assert (gate.grad == 0).tolist() == [True, False, False, False, False]
    assert (up.grad == 0).tolist() == [False, True, True, False, False]


def test_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"swiglu: gate \(2, 3\) and up"):
        unwrap(swiglu)(torch.zeros(2, 3), torch.zeros(3, 2))
