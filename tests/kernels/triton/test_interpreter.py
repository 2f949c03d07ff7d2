"""The mended interpreter computes bfloat16 as GPUs do: arithmetic widened, rounded once to even."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from gptoss_kernels.triton import bits, interpreter
from gptoss_kernels.triton.launch import launch

HALF_WAYS = (1.00390625, 1.01171875, -1.00390625, 1e-40, 65536.0, float("inf"), -0.0, 3.3e38)


def draw(*shape, seed=0, dtype=torch.bfloat16):
    return (4 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


@triton.jit
def _arithmetic(x_ptr, y_ptr, out_ptr, VERB: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    x, y = tl.load(x_ptr + i), tl.load(y_ptr + i)
    if VERB == "add":
        out = x + y
    elif VERB == "sub":
        out = x - y
    elif VERB == "mul":
        out = x * y
    elif VERB == "max":
        out = tl.maximum(x, y)
    elif VERB == "neg":
        out = -x
    elif VERB == "abs":
        out = tl.abs(x)
    elif VERB == "fma":
        out = tl.fma(x, y, x)
    else:
        out = tl.where(x < y, x, y)
    tl.store(out_ptr + i, out)


@triton.jit
def _cast(x_ptr, out_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out_ptr + i, tl.load(x_ptr + i).to(out_ptr.dtype.element_ty))


@triton.jit
def _reduce(x_ptr, out_ptr, VERB: tl.constexpr, N: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, N))
    if VERB == "sum":
        tl.store(out_ptr, tl.sum(x, 0))
    elif VERB == "max":
        tl.store(out_ptr, tl.max(x, 0))
    else:
        tl.store(out_ptr + tl.arange(0, N), tl.cumsum(x, 0))


@triton.jit
def _dot(x_ptr, y_ptr, out_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    at = i[:, None] * N + i[None, :]
    tl.store(out_ptr + at, tl.dot(tl.load(x_ptr + at), tl.load(y_ptr + at)))


@triton.jit
def _scaled(x_ptr, code_ptr, scale_ptr, out_ptr, N: tl.constexpr, K: tl.constexpr):
    i, k = tl.arange(0, N), tl.arange(0, K)
    half, block = tl.arange(0, K // 2), tl.arange(0, K // 32)
    x = tl.load(x_ptr + i[:, None] * K + k[None, :])
    code = tl.load(code_ptr + i[None, :] * (K // 2) + half[:, None])
    scale = tl.load(scale_ptr + i[:, None] * (K // 32) + block[None, :])
    out = tl.dot_scaled(x, None, "bf16", code, scale, "e2m1")
    tl.store(out_ptr + i[:, None] * N + i[None, :], out)


WANTED = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "max": torch.maximum,
    "min": torch.minimum,
    "neg": lambda x, y: -x,
    "abs": lambda x, y: x.abs(),
    "fma": lambda x, y: (x.double() * y.double() + x.double()).float().bfloat16(),
}


@pytest.mark.parametrize("verb", WANTED)
def test_arithmetic_equals_torch(verb):
    x, y, out = draw(64), draw(64, seed=1), torch.empty(64, dtype=torch.bfloat16)
    launch(_arithmetic, (1,), x, y, out, VERB=verb, N=64)
    assert torch.equal(out, WANTED[verb](x, y))


CASTS = [("float32", "bfloat16"), ("int32", "bfloat16"), ("bfloat16", "int32"),
         ("bfloat16", "float16"), ("float16", "bfloat16"), ("bfloat16", "float32")]  # fmt: skip


@pytest.mark.parametrize("given, wanted", CASTS)
def test_casts_equal_torchs(given, wanted):
    x = draw(64, dtype=torch.float32).mul(30).to(getattr(torch, given))
    out = torch.empty(64, dtype=getattr(torch, wanted))
    launch(_cast, (1,), x, out, N=64)
    assert torch.equal(out, x.to(out.dtype))


def test_float32_is_rounded_to_nearest_even():
    x, out = torch.tensor(HALF_WAYS), torch.empty(8, dtype=torch.bfloat16)
    launch(_cast, (1,), x, out, N=8)
    assert torch.equal(out, x.bfloat16())


@pytest.mark.parametrize("verb", ["sum", "max", "cumsum"])
def test_reductions_are_rounded_at_their_end(verb):
    x = draw(64)
    out = torch.empty(64 if verb == "cumsum" else 1, dtype=torch.bfloat16)
    launch(_reduce, (1,), x, out, VERB=verb, N=64)
    wanted = {"sum": x.double().sum(), "max": x.max(), "cumsum": x.double().cumsum(0)}[verb]
    torch.testing.assert_close(out.squeeze(), wanted.bfloat16().squeeze(), rtol=0.008, atol=0)
    assert verb != "sum" or out.item() == wanted.bfloat16().item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_products_equal_torchs(dtype):
    x, y, out = draw(16, 16, dtype=dtype), draw(16, 16, seed=1, dtype=dtype), torch.empty(16, 16)
    launch(_dot, (1,), x, y, out, N=16)
    assert torch.equal(out, (x.double() @ y.double()).float())


def test_a_products_row_has_the_same_bits_in_every_place():
    x, y = draw(16, 16, dtype=torch.float32), draw(16, 16, seed=1, dtype=torch.float32)
    first, turned = torch.empty(16, 16), torch.empty(16, 16)
    launch(_dot, (1,), x, y, first, N=16)
    launch(_dot, (1,), x.roll(5, 0), y, turned, N=16)
    assert torch.equal(turned, first.roll(5, 0))


def test_scaled_products_keep_bfloat16s_range():
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    table = torch.cat([table, -table])
    g = torch.Generator().manual_seed(0)
    x = (draw(16, 64) * 1e30).contiguous()
    code = torch.randint(0, 256, (16, 32), dtype=torch.uint8, generator=g)
    scale = torch.randint(110, 140, (16, 2), dtype=torch.uint8, generator=g)
    out = torch.empty(16, 16)
    launch(_scaled, (1,), x, code, scale, out, N=16, K=64)
    weight = torch.stack([table[(code & 15).long()], table[(code >> 4).long()]], -1).flatten(1)
    weight = weight.double() * torch.exp2(scale.double() - 127).repeat_interleave(32, 1)
    wanted = x.double() @ weight.T
    assert float((out.double() - wanted).norm() / wanted.norm()) <= 1e-6


def test_installing_twice_is_installing_once():
    interpreter.install()
    first = interpreter.Builder.create_dot
    interpreter.install()
    assert interpreter.Builder.create_dot is first


def test_float64_is_rounded_once():
    """1 + 2^-8 + 2^-40 is just above half way; by way of float32 it would be rounded to even."""
    x = np.array([1 + 2**-8 + 2**-40, 1 + 2**-8 - 2**-40, 1 + 3 * 2**-8])
    assert bits.widen(bits.narrow(x)).tolist() == [1 + 2**-7, 1.0, 1 + 2**-6]


def test_nan_stays_nan():
    assert np.isnan(bits.widen(bits.narrow(np.array([np.nan], np.float32)))).all()
    odd = np.array([0x7F800001], np.uint32).view(np.float32)  # rounding would make it infinite
    assert np.isnan(bits.widen(bits.narrow(odd))).all()
