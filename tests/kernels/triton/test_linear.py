"""Triton's projections: the numbers of the reference, the same bits alone and in company."""

import pytest
import torch

from gptoss_kernels.linear import linear as reference
from gptoss_kernels.triton import linear as module
from gptoss_kernels.triton.linear import linear, pieces

DTYPES = (torch.float32, torch.bfloat16)


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def distance(found, wanted):
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("weight_dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 45, 37), (17, 96, 33), (40, 33, 65)])
def test_equals_the_reference(shape, weight_dtype):
    rows, inner, outer = shape
    x, bias = draw(rows, inner), draw(outer, seed=2, dtype=torch.bfloat16)
    weight = draw(outer, inner, seed=1, dtype=weight_dtype)
    exact = x.double() @ weight.double().mT + bias.double()
    assert distance(linear(x, weight, bias), exact) <= 1e-6
    assert distance(linear(x, weight), x.double() @ weight.double().mT) <= 1e-6


@pytest.mark.parametrize("weight_dtype", DTYPES)
def test_bfloat16_is_rounded_once(weight_dtype):
    x, weight = draw(2, 3, 45, dtype=torch.bfloat16), draw(37, 45, seed=1, dtype=weight_dtype)
    bias = draw(37, seed=2, dtype=torch.bfloat16)
    y = linear(x, weight, bias)
    assert y.dtype == torch.bfloat16 and y.shape == (2, 3, 37)
    wide = linear(x, weight, bias, dtype=torch.float32)
    assert wide.dtype == torch.float32 and torch.equal(y, wide.bfloat16())
    assert distance(wide, reference(x.float(), weight, bias)) <= 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
def test_company_changes_nothing(dtype, monkeypatch):
    """Alone the pieces of the inputs are programs of their own, in company they are not."""
    monkeypatch.setattr(module, "FEW", 3)
    monkeypatch.setattr(module, "PIECE", 64)
    x, weight = draw(70, 200, dtype=dtype), draw(40, 200, seed=1, dtype=torch.bfloat16)
    bias = draw(40, seed=2)
    whole = linear(x, weight, bias)
    assert torch.equal(linear(x[69], weight, bias), whole[69])
    assert torch.equal(linear(x[30:53], weight, bias), whole[30:53])
    assert torch.equal(linear(x[None, 5:9].expand(2, 4, 200), weight, bias)[1], whole[5:9])


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_program_sums_pieces_as_several_do(dtype, monkeypatch):
    monkeypatch.setattr(module, "PIECE", 192)
    x, weight = draw(5, 450, dtype=dtype), draw(40, 450, seed=1, dtype=torch.bfloat16)
    found = []
    for few in (1, 1000):
        monkeypatch.setattr(module, "FEW", few)
        found.append(linear(x, weight, dtype=torch.float32))
    assert torch.equal(*found)
    assert distance(found[0], x.double() @ weight.double().mT) <= 1e-6


def test_pieces_are_whole_blocks_and_follow_from_the_weight_alone():
    assert pieces(4096, 2880, 64) == (4, 768)
    assert pieces(2880, 4096, 64) == (6, 704)
    assert pieces(201088, 2880, 64) == (1, 2880)
    assert pieces(2880, 201088, 64) == (8, 25152)
    assert pieces(7, 5, 64) == (1, 64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight_dtype", DTYPES)
def test_the_gradient_equals_the_references(dtype, weight_dtype):
    weight, grads = draw(37, 45, seed=1, dtype=weight_dtype), []
    for body in (linear, reference):
        x = draw(2, 9, 45, dtype=dtype).requires_grad_()
        (body(x, weight, draw(37), dtype=torch.float32) * draw(2, 9, 37, seed=3)).sum().backward()
        assert x.grad is not None and x.grad.dtype == dtype
        grads.append(x.grad)
    assert distance(*grads) <= (1e-5 if dtype == torch.float32 else 3e-3)


def test_a_slice_of_a_weight_and_of_rows_will_do():
    x, weight = draw(5, 90)[:, 3:48], draw(60, 45, seed=1, dtype=torch.bfloat16)[7:40]
    assert distance(linear(x, weight), reference(x, weight)) <= 1e-6
    assert linear(x[:0], weight).shape == (0, 33)


def test_what_lies_behind_the_inputs_is_not_read():
    held = torch.full((4 * 45 + 100,), torch.nan)
    x = held[: 4 * 45].view(4, 45)
    x.copy_(draw(4, 45))
    assert linear(x, draw(33, 45, dtype=torch.bfloat16)).isfinite().all()


def test_what_does_not_fit_is_refused():
    weight = draw(37, 45, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="x ends in 44 but the weight maps 45 inputs"):
        linear(draw(3, 44), weight)
    with pytest.raises(ValueError, match="37 outputs, the bias is"):
        linear(draw(3, 45), weight, draw(36))
    with pytest.raises(ValueError, match="expected x in bfloat16 or float32; got"):
        linear(draw(3, 45).double(), weight)
