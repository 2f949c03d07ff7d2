"""Triton's rotation in the interpreter equals the reference, forward and back."""

import pytest
import torch

from gptoss_kernels import rope
from gptoss_kernels.triton.rope import rotate

DTYPES = (torch.float32, torch.bfloat16)


def draw(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def turn(positions, d_head):
    frequencies = rope.yarn(d_head, 150000, factor=32, original_context=4096)
    return rope.tables(positions, frequencies)


@pytest.mark.parametrize("heads, d_head", [(1, 2), (3, 10), (8, 64)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_the_reference(heads, d_head, dtype):
    x = draw(2, 5, heads, d_head, dtype=dtype)
    cos_sin = turn(torch.tensor([[0, 1, 2, 500, 131071], [3, 4, 5, 6, 7]]), d_head)
    torch.testing.assert_close(rotate(x, *cos_sin), rope.rotate(x, *cos_sin))


def test_company_changes_nothing():
    x, positions = draw(2, 6, 3, 16), torch.arange(12).view(2, 6)
    alone = rotate(x[1:, 4:5], *turn(positions[1:, 4:5], 16))
    assert torch.equal(alone, rotate(x, *turn(positions, 16))[1:, 4:5])


def test_a_row_of_angles_may_serve_the_whole_batch():
    x, positions = draw(2, 6, 3, 16), torch.arange(6)[None]
    both = rotate(x, *turn(positions.expand(2, 6), 16))
    assert torch.equal(rotate(x, *turn(positions, 16)), both)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_equal_the_references(dtype):
    cos_sin, grads = turn(torch.arange(10).view(2, 5), 10), []
    for body in (rotate, rope.rotate):
        x = draw(2, 5, 3, 10, dtype=dtype).requires_grad_()
        (body(x, *cos_sin) * draw(2, 5, 3, 10)).sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads)
