"""Native RMSNorm: the reference's numbers, the same bits with and without taps."""

import pytest
import torch

from gptoss_kernels.native import library
from gptoss_kernels.native.norm import rms_norm
from gptoss_kernels.rms_norm import NormTap
from gptoss_kernels.rms_norm import rms_norm as reference

DTYPES = (torch.float32, torch.bfloat16)


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def same(x):
    return x


@pytest.mark.parametrize("width", [1, 7, 32, 33, 64, 2880])
@pytest.mark.parametrize("weight_dtype", DTYPES)
def test_equals_the_reference(isa, width, weight_dtype):
    x, weight = 3 * draw(2, 5, width), draw(width, seed=1, dtype=weight_dtype)
    found, wanted = rms_norm(x, weight), reference(x, weight)
    assert float((found - wanted).norm() / wanted.norm()) <= 2e-6


def test_bfloat16_is_rounded_once(isa):
    x, weight = draw(2, 9, 257, dtype=torch.bfloat16), draw(257, dtype=torch.bfloat16)
    y = rms_norm(x, weight)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, rms_norm(x.float(), weight).bfloat16())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("names", [("scale",), ("normalized",), NormTap._fields])
def test_looking_changes_nothing(isa, names, dtype):
    x, weight = draw(2, 5, 45, dtype=dtype), draw(45, dtype=dtype)
    tap = NormTap(**dict.fromkeys(names, same))
    assert torch.equal(rms_norm(x, weight, tap=tap), rms_norm(x, weight))


@pytest.mark.parametrize("dtype", DTYPES)
def test_company_and_instruction_set_change_nothing(dtype):
    x, weight = draw(3, 40, 2880, dtype=dtype), draw(2880, dtype=dtype)
    whole = rms_norm(x, weight)
    for name in library.isas():
        with library.using(name):
            assert torch.equal(rms_norm(x[1:2, 7:8], weight)[0, 0], whole[1, 7])


def test_edits_are_used(isa):
    x, weight, seen = draw(1, 2, 33), draw(33, seed=1), []

    def halve(scale):
        seen.append(scale)
        return scale / 2

    y = rms_norm(x, weight, tap=NormTap(halve, lambda normalized: normalized + 1))
    wanted = reference(x, weight, tap=NormTap(lambda s: s / 2, lambda normalized: normalized + 1))
    torch.testing.assert_close(y, wanted)
    assert seen[0].shape == (1, 2, 1) and seen[0].dtype == torch.float32


def test_weights_of_a_mapped_file_may_lie_anywhere(isa):
    x, weight = draw(1, 3, 40, dtype=torch.bfloat16), draw(41, dtype=torch.bfloat16)
    assert torch.equal(rms_norm(x, weight[1:]), rms_norm(x, weight[1:].clone()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("names", [(), ("scale",), NormTap._fields])
def test_gradients_equal_the_references(isa, names, dtype):
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
