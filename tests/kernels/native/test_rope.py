"""Native rotary positions: the bits of the reference, and its gradient."""

import pytest
import torch

from gptoss_kernels import rope as reference
from gptoss_kernels.native.rope import rotate


def draw(tokens, heads, d_head, dtype=torch.float32):
    x = torch.randn(2, tokens, heads, d_head, generator=torch.Generator().manual_seed(0))
    positions = torch.stack([torch.arange(tokens) - 3, torch.arange(tokens) + 4000])
    return x.to(dtype), *reference.tables(positions, reference.plain(d_head, 150000.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "heads", "d_head"), [(1, 64, 64), (150, 8, 64), (7, 3, 10)])
def test_equals_the_reference_bit_for_bit(isa, tokens, heads, d_head, dtype):
    x, cos, sin = draw(tokens, heads, d_head, dtype)
    y = rotate(x, cos, sin)
    assert y.dtype == dtype
    assert torch.equal(y, reference.rotate(x, cos, sin))


def test_views_are_read_as_they_lie(isa):
    x, cos, sin = draw(9, 4, 32)
    y = rotate(x.transpose(1, 2).contiguous().transpose(1, 2), cos, sin)
    assert torch.equal(y, rotate(x, cos, sin))


def test_the_gradient_equals_the_references(isa):
    x, cos, sin = draw(9, 4, 32)
    grads = []
    for body in (rotate, reference.rotate):
        leaf = x.clone().requires_grad_()
        (body(leaf, cos, sin) * x.cos()).sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads)


def test_angles_of_another_width_are_refused():
    x, cos, sin = draw(9, 4, 32)
    with pytest.raises(ValueError, match="heads of 32 and angles of 8 pairs"):
        rotate(x, cos[..., :8], sin[..., :8])
