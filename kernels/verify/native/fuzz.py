"""Random shapes against the references: few rows, odd widths, one block, tails of every length.

Run by pytest, and recorded to be replayed under sanitizers. Every case is one seed.
"""

import pytest
import torch
from torch import Tensor

from gptoss_kernels import attention, linear, mxfp4, rms_norm, rope, route
from gptoss_kernels import moe as experts
from gptoss_kernels.native import attention as native_attention
from gptoss_kernels.native import linear as native_linear
from gptoss_kernels.native import moe as native_moe
from gptoss_kernels.native import norm as native_norm
from gptoss_kernels.native import rope as native_rope
from gptoss_kernels.native import route as native_route

DTYPES = (torch.float32, torch.bfloat16)
CLOSE = {torch.float32: 2e-6, torch.bfloat16: 4e-3}
"""Relative L2 distance from the reference, which sums in another order"""


@pytest.fixture(params=range(12))
def g(request) -> torch.Generator:
    return torch.Generator().manual_seed(request.param)


def below(g: torch.Generator, most: int, least: int = 1) -> int:
    return int(torch.randint(least, most + 1, (), generator=g))


def one_of(g: torch.Generator, choices: tuple):
    return choices[below(g, len(choices) - 1, 0)]


def normal(g: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=g).to(dtype)


def packed(g: torch.Generator, *shape: int) -> tuple[Tensor, Tensor]:
    """Blocks and scales of shape [..., outer, block]; some scales are 0."""
    blocks = torch.randint(0, 256, (*shape, 16), generator=g, dtype=torch.uint8)
    scales = torch.randint(118, 128, shape, generator=g, dtype=torch.uint8)
    scales[torch.rand(shape, generator=g) < 0.05] = 0
    return blocks, scales


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape and found.dtype == expected.dtype
    apart = (found.double() - expected.double()).norm()
    assert apart <= CLOSE[found.dtype] * expected.double().norm() + 1e-30


def with_gradient(function, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    y = function(leaf)
    (found,) = torch.autograd.grad(y, leaf, grad.to(y.dtype))
    return y.detach(), found


def test_linear(g):
    rows, outer, inner = below(g, 70), below(g, 60), below(g, 600)
    x_dtype, dtype = one_of(g, DTYPES), one_of(g, DTYPES)
    x, w = normal(g, rows, inner, dtype=x_dtype), normal(g, outer, inner, dtype=dtype)
    bias = one_of(g, (None, normal(g, outer, dtype=dtype)))
    grad = normal(g, rows, outer)
    found = with_gradient(lambda x: native_linear.linear(x, w, bias, dtype=dtype), x, grad)
    expected = with_gradient(lambda x: linear.linear(x, w, bias, dtype=dtype), x, grad)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other)


def test_packed_linear(g):
    rows, outer, n = below(g, 70), below(g, 60), below(g, 20)
    blocks, scales = packed(g, outer, n)
    x, grad = normal(g, rows, 32 * n, dtype=one_of(g, DTYPES)), normal(g, rows, outer)
    found = with_gradient(lambda x: native_linear.packed_linear(x, blocks, scales), x, grad)
    expected = with_gradient(lambda x: mxfp4.packed_linear(x, blocks, scales), x, grad)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other)


def test_no_rows_give_no_rows():
    blocks, scales = packed(torch.Generator().manual_seed(0), 5, 2)
    x = torch.zeros(0, 64)
    assert native_linear.packed_linear(x, blocks, scales).shape == (0, 5)
    assert native_linear.linear(x, torch.zeros(3, 64)).shape == (0, 3)


def test_largest_scale_and_nan(g):
    blocks, scales = packed(g, 3, 5)
    blocks, scales[0, below(g, 4, 0)], scales[1, below(g, 4, 0)] = blocks & 0xBB, 254, 255
    x = normal(g, 2, 160) / 1024
    found, expected = (each.packed_linear(x, blocks, scales) for each in (native_linear, mxfp4))
    assert found[:, 1].isnan().all()
    assert_close(found[:, ::2], expected[:, ::2])


def test_attention(g):
    batch, keys, kv, group, d = below(g, 2), below(g, 140), below(g, 3), below(g, 9), below(g, 70)
    queries, dtype = below(g, keys), one_of(g, DTYPES)
    q = normal(g, batch, queries, kv * group, d, dtype=dtype)
    k, v = (normal(g, batch, keys, kv, d, dtype=dtype) for _ in range(2))
    key_pos = torch.arange(keys) - torch.randint(0, keys, (batch, 1), generator=g)
    arguments = (q, k, v, normal(g, kv * group), key_pos[:, -queries:], key_pos)
    window = one_of(g, (None, below(g, 130)))
    found = native_attention.attention(*arguments, window=window)
    assert_close(found, attention.attention(*arguments, window=window))


def test_norm_and_rope(g):
    batch, pos, heads, half = below(g, 3), below(g, 9), below(g, 5), below(g, 40)
    x = normal(g, batch, pos, heads * half, dtype=one_of(g, DTYPES))
    weight = normal(g, heads * half, dtype=one_of(g, DTYPES))
    assert_close(native_norm.rms_norm(x, weight), rms_norm.rms_norm(x, weight))
    turned, angle = normal(g, batch, pos, heads, 2 * half), normal(g, batch, pos, half)
    arguments = (turned, angle.cos(), angle.sin())
    assert torch.equal(native_rope.rotate(*arguments), rope.rotate(*arguments))


def test_route(g):
    logits = normal(g, below(g, 3), below(g, 9), below(g, 130)).round(decimals=1)
    k = below(g, min(9, logits.shape[-1]))
    chosen = native_route.choose(logits, k)
    assert torch.equal(chosen, route.choose(logits, k))
    assert_close(native_route.weigh(logits, chosen), route.weigh(logits, chosen))


def test_moe(g):
    pos, n, k = below(g, 40), below(g, 6, 2), below(g, 2)
    d_model, d_ff, dtype = 32 * below(g, 9), 32 * below(g, 9), one_of(g, DTYPES)
    weights = experts.Experts(
        *packed(g, n, 2 * d_ff, d_model // 32), normal(g, n, 2 * d_ff, dtype=dtype),
        *packed(g, n, d_model, d_ff // 32), normal(g, n, d_model, dtype=dtype),
    )  # fmt: skip
    x, logits = normal(g, 1, pos, d_model, dtype=dtype), normal(g, 1, pos, n)
    chosen = route.route(logits, k)
    found = native_moe.moe(x, *chosen, weights)
    assert_close(found, experts.moe(x, *chosen, weights))
