"""Triton's RMSNorm: the numbers of the reference, the same bits with and without taps."""

import pytest
import torch

from gptoss_kernels.rms_norm import NormTap
from gptoss_kernels.rms_norm import rms_norm as reference
from gptoss_kernels.triton.rms_norm import rms_norm

DTYPES = (torch.float32, torch.bfloat16)


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def same(x):
    return x


@pytest.mark.parametrize("width", [1, 7, 33, 64, 2880])
@pytest.mark.parametrize("weight_dtype", DTYPES)
def test_equals_the_reference(width, weight_dtype):
    x, weight = 3 * draw(2, 5, width), draw(width, seed=1, dtype=weight_dtype)
    found, wanted = rms_norm(x, weight), reference(x, weight)
    assert float((found - wanted).norm() / wanted.norm()) <= 2e-6


def test_bfloat16_is_rounded_once():
    x, weight = draw(2, 9, 257, dtype=torch.bfloat16), draw(257, dtype=torch.bfloat16)
    y = rms_norm(x, weight)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, rms_norm(x.float(), weight).bfloat16())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("names", [("scale",), ("normalized",), NormTap._fields])
def test_looking_changes_nothing(names, dtype):
    x, weight = draw(2, 5, 45, dtype=dtype), draw(45, dtype=dtype)
    tap = NormTap(**dict.fromkeys(names, same))
    assert torch.equal(rms_norm(x, weight, tap=tap), rms_norm(x, weight))


@pytest.mark.parametrize("dtype", DTYPES)
def test_company_changes_nothing(dtype):
    x, weight = draw(3, 4, 300, dtype=dtype), draw(300, dtype=dtype)
    whole = rms_norm(x, weight)
    assert torch.equal(rms_norm(x[1:2, 3:4], weight)[0, 0], whole[1, 3])


def test_edits_are_used():
    x, weight = draw(1, 2, 33), draw(33, seed=1)
    tap = NormTap(lambda scale: scale / 2, lambda normalized: normalized + 1)
    torch.testing.assert_close(rms_norm(x, weight, tap=tap), reference(x, weight, tap=tap))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("names", [(), ("scale",), NormTap._fields])
def test_gradients_equal_the_references(names, dtype):
    tap = NormTap(**dict.fromkeys(names, same))
    weight, grads = draw(45, seed=1), []
    for body in (rms_norm, reference):
        x = draw(2, 3, 45, dtype=dtype).requires_grad_()
        (body(x, weight, tap=tap) * draw(2, 3, 45, seed=2)).sum().backward()
        grads.append(x.grad.double())
    tolerance = 1e-5 if dtype == torch.float32 else 0.01
    assert float((grads[0] - grads[1]).norm() / grads[1].norm()) <= tolerance


def test_a_weight_of_another_width_is_refused():
    with pytest.raises(ValueError, match="x ends in 33, the weight is"):
        rms_norm(draw(1, 2, 33), draw(32))
