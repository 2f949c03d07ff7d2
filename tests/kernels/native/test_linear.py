"""Native projections: the reference's numbers, and bits that depend on a row alone."""

import ctypes
import mmap

import pytest
import torch
from torch.autograd import forward_ad

from gptoss_kernels.mxfp4 import pack, unpack
from gptoss_kernels.native.linear import linear, packed_linear

INNER, OUTER, ROWS = (32, 96, 2880), (1, 13, 50), (1, 2, 3, 7, 130)
EXACT = 2e-6
"""Relative L2 error of float32 sums against float64."""

CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")
"""Of torch.library.opcheck: all but a compilation."""


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def drawn_blocks(outer, inner, *, low=118, high=126, seed=0):
    g = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (outer, inner // 32, 16), generator=g, dtype=torch.uint8)
    return blocks, torch.randint(low, high, blocks.shape[:2], generator=g).to(torch.uint8)


def weights(kind, outer, inner):
    """(product with x, dense float64 weight) of a format."""
    if kind == "mxfp4":
        packed = drawn_blocks(outer, inner)
        return lambda x: packed_linear(x, *packed), unpack(*packed).double()
    weight = draw(outer, inner, seed=1).to(kind)
    return lambda x: linear(x, weight, dtype=torch.float32), weight.double()


def distance(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


KINDS = ("mxfp4", torch.bfloat16, torch.float32)
DTYPES = (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_equals_float64_whatever_the_shape(isa, kind, inner, dtype):
    for outer in OUTER:
        product, dense = weights(kind, outer, inner)
        for rows in ROWS:
            x = draw(rows, inner, seed=rows).to(dtype)
            assert distance(product(x), x.double() @ dense.mT) <= EXACT


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("inner", (1, 5, 31, 33, 45, 127, 545))
def test_dense_weights_need_no_multiple_of_anything(isa, inner, dtype):
    for kind in KINDS[1:]:
        product, dense = weights(kind, 7, inner)
        for rows in (1, 3, 5):
            x = draw(rows, inner).to(dtype)
            assert distance(product(x), x.double() @ dense.mT) <= EXACT


def mixed(x):
    """The rows with two of three made of bfloat16, which some lanes multiply in another way."""
    return x.where(torch.arange(len(x))[:, None] % 3 == 1, x.bfloat16().float())


@pytest.mark.parametrize("rounded", (torch.Tensor.float, torch.Tensor.bfloat16, mixed))
@pytest.mark.parametrize("inner", (320, 1056))
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_row_has_the_same_bits_alone_and_in_any_batch(isa, kind, inner, rounded):
    product, _ = weights(kind, 29, inner)
    x = rounded(draw(133, inner))
    alone = torch.cat([product(row[None]) for row in x])
    for rows in (2, 3, 4, 5, 6, 7, 8, 9, 64, 65, 133):
        assert torch.equal(product(x[:rows]), alone[:rows])
        assert torch.equal(product(x[-rows:]), alone[-rows:])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_threads_change_no_bit(isa, kind, dtype):
    product, _ = weights(kind, 301, 96)
    x = draw(1100, 96).to(dtype)
    one = product(x)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        try:
            many = product(x), product(x[5:6])
        finally:
            torch.set_num_threads(1)
        assert torch.equal(many[0], one)
        assert torch.equal(many[1], one[5:6])


def test_bfloat16_results_are_rounded_float32_results(isa):
    weight, bias = draw(37, 64, seed=1).bfloat16(), draw(37, seed=2).bfloat16()
    for rows in (1, 6):
        x = draw(rows, 64).bfloat16()
        wide = linear(x, weight, bias, dtype=torch.float32)
        assert torch.equal(linear(x, weight, bias), wide.bfloat16())
        assert torch.equal(linear(x.float(), weight, bias), wide)


def test_bits_depend_on_the_values_of_a_row_not_on_its_dtype(isa):
    for kind in KINDS:
        product, _ = weights(kind, 13, 288)
        for rows in (1, 4, 9):
            x = draw(rows, 288).bfloat16()
            assert torch.equal(product(x), product(x.float()))


def test_bias_may_be_wide_or_missing(isa):
    x, weight, bias = draw(2, 3, 40), draw(17, 40, seed=1), draw(17, seed=2)
    assert torch.equal(linear(x, weight, bias), linear(x, weight) + bias)
    assert torch.equal(linear(x, weight, bias.bfloat16()), linear(x, weight) + bias.bfloat16())


def test_every_code_and_scale_byte_is_exact(isa):
    codes = torch.arange(256, dtype=torch.uint8).view(16, 1, 16)
    one = torch.eye(32)
    for scale in (0, 1, 2, 100, 127, 200, 253, 254):
        scales = torch.full((16, 1), scale, dtype=torch.uint8)
        expected = unpack(codes, scales)
        assert torch.equal(packed_linear(one, codes, scales).mT, expected)
        for k in (0, 13, 31):
            assert torch.equal(packed_linear(one[k : k + 1], codes, scales)[0], expected[:, k])


def test_extreme_scales_share_a_row(isa):
    blocks, scales = drawn_blocks(5, 96)
    scales[:, 0], scales[:, 2] = 0, 254
    blocks[:, 2] &= 0x99  # ±0.5 and 0: larger codes times 2^127 are beyond float32
    dense = unpack(blocks, scales).double()
    scale = torch.tensor([2.0**80, 1.0, 2.0**-100]).repeat_interleave(32)
    for rows in (1, 9):
        for x in (draw(rows, 96) * scale, (draw(rows, 96) * scale).bfloat16()):
            assert distance(packed_linear(x, blocks, scales), x.double() @ dense.mT) <= EXACT


@pytest.mark.parametrize("exponent", (-133, -127, -126, -118, -117))
def test_denormals_count_under_a_large_scale(isa, exponent):
    blocks, scales = drawn_blocks(5, 160, low=253, high=255)
    dense = unpack(blocks & 0x33, scales).double()
    for rows in (1, 3, 9):
        x = (draw(rows, 160) / 1024).bfloat16().float()
        x[-1] = (x[-1] * 2.0 ** (exponent + 10)).bfloat16()
        x[-1, 7] = 2.0**exponent
        found = packed_linear(x[-1:].bfloat16(), blocks & 0x33, scales)
        assert distance(found, x[-1:].double() @ dense.mT) <= EXACT
        assert torch.equal(packed_linear(x, blocks & 0x33, scales)[-1:], found)


def test_denormal_dense_weights_and_sums_cost_no_more_than_their_size(isa):
    """AVX512_BF16 takes them for 0; calls recorded for comparison leave this test out."""
    inner, tiny = 160, 2.0**-126
    for x_size, w_size in ((1.0, 2.0**-130), (2.0**100, 2.0**-128), (2.0**-70, 2.0**-60)):
        weight = (draw(6, inner, seed=1) * w_size).bfloat16()
        weight[:, ::3] = draw(6, inner, seed=2)[:, ::3].bfloat16() * w_size * 64
        for rows in (1, 2, 7):
            x = (draw(rows, inner) * x_size).bfloat16()
            found = linear(x, weight, dtype=torch.float32).double()
            size = x.double().abs().sum(-1, keepdim=True)
            rounding = EXACT * (x.double().abs() @ weight.double().abs().mT)
            apart = (found - x.double() @ weight.double().mT).abs()
            assert (apart <= tiny * (inner + size) + rounding).all()


def test_scale_255_means_nan_in_its_row_only(isa):
    blocks, scales = drawn_blocks(7, 96)
    scales[3, 2] = 255
    for rows in (1, 5):
        for dtype in DTYPES:
            found = packed_linear(draw(rows, 96).to(dtype), blocks, scales).isnan()
            assert found[:, 3].all()
            assert found.sum() == rows


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_not_finite_stays_in_its_row(isa, dtype):
    x = draw(6, 64).to(dtype)
    x[2, 5], x[4, 7] = torch.inf, torch.nan
    plain = packed_linear(x[:2], *drawn_blocks(9, 64))
    y = packed_linear(x, *drawn_blocks(9, 64))
    assert torch.equal(y[:2], plain)
    assert y[[0, 1, 3, 5]].isfinite().all()
    assert not y[2].isfinite().any()
    assert y[4].isnan().all()


def test_weights_that_were_packed_come_back(isa):
    weight = unpack(*pack(draw(11, 64, seed=4)))
    assert torch.equal(packed_linear(torch.eye(64), *pack(weight)).mT, weight)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_gradients_equal_float64(isa, kind):
    for inner in (96, 544):
        product, dense = weights(kind, 50, inner)
        for rows in (1, 2, 7, 61):
            x, grad = draw(rows, inner).requires_grad_(), draw(rows, 50, seed=3)
            product(x).backward(grad)
            assert distance(x.grad, grad.double() @ dense) <= EXACT


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_rows_gradient_does_not_depend_on_its_batch(isa, kind):
    product, _ = weights(kind, 50, 544)

    def gradient(rows):
        x = draw(61, 544)[rows].requires_grad_()
        product(x).backward(draw(61, 50, seed=3)[rows])
        return x.grad

    together = gradient(slice(None))
    for rows in (slice(0, 1), slice(4, 5), slice(7, 14), slice(48, 61)):
        assert torch.equal(gradient(rows), together[rows])


def test_gradients_of_bfloat16_rows_are_bfloat16(isa):
    weight = draw(13, 45, seed=1).bfloat16()
    x, grad = draw(2, 3, 45).bfloat16().requires_grad_(), draw(2, 3, 13, seed=2).bfloat16()
    linear(x, weight).backward(grad)
    wide = x.detach().float().requires_grad_()
    linear(wide, weight).backward(grad.float())
    assert torch.equal(x.grad, wide.grad.bfloat16())


def test_gradients_are_recorded_only_when_asked_for(isa):
    x, weight = draw(2, 45), draw(5, 45)
    assert not linear(x, weight).requires_grad
    with torch.no_grad():
        assert not linear(x.clone().requires_grad_(), weight).requires_grad
    assert linear(x.clone().requires_grad_(), weight).requires_grad


def test_strided_rows_are_read_as_they_are(isa):
    weight = draw(7, 24).bfloat16()
    x = draw(5, 2, 48)[:, 1, ::2]
    assert torch.equal(linear(x, weight), linear(x.contiguous(), weight))
    assert linear(draw(0, 24), weight).shape == (0, 7)


def test_shapes_that_do_not_fit_are_named(isa):
    with pytest.raises(ValueError, match="x ends in 44 but the weight maps 45"):
        linear(draw(2, 44), draw(3, 45))
    with pytest.raises(ValueError, match="x ends in 44, the weight maps 64"):
        packed_linear(draw(2, 44), *drawn_blocks(3, 64))
    with pytest.raises(ValueError, match="expected float32 or bfloat16, got"):
        linear(draw(2, 45).half(), draw(3, 45))


def test_torch_knows_the_operators():
    x, packed = draw(3, 64).requires_grad_(), drawn_blocks(5, 64)
    ops = torch.ops.gptoss_native
    dense = x, draw(5, 64), None, torch.float32
    for op, arguments in ((ops.packed_linear, (x, *packed)), (ops.linear, dense)):
        torch.library.opcheck(op.default, arguments, test_utils=CHECKS)


@pytest.fixture
def fenced():
    """fenced(tensor): a copy whose last byte is followed by memory that cannot be touched."""
    libc = ctypes.CDLL(None, use_errno=True)
    page = mmap.PAGESIZE

    def copy(tensor):
        size = tensor.numel() * tensor.element_size()
        whole = -(-size // page) * page
        memory = mmap.mmap(-1, whole + page)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        assert libc.mprotect(ctypes.c_void_p(start + whole), ctypes.c_size_t(page), 0) == 0
        flat = torch.frombuffer(memory, dtype=torch.uint8, count=size, offset=whole - size)
        return (
            flat.copy_(tensor.reshape(-1).view(torch.uint8)).view(tensor.dtype).view(tensor.shape)
        )

    return copy


@pytest.mark.parametrize("inner", (32, 96, 160))
def test_nothing_is_read_beyond_the_end(isa, fenced, inner):
    blocks, scales = map(fenced, drawn_blocks(13, inner))
    for rows in (1, 2, 5):
        for dtype in DTYPES:
            x = fenced(draw(rows, inner).to(dtype)).requires_grad_()
            packed_linear(x, blocks, scales).sum().backward()
            x = fenced(draw(rows, inner - 3).to(dtype)).requires_grad_()
            weight, bias = fenced(draw(13, inner - 3).to(dtype)), fenced(draw(13).to(dtype))
            linear(x, weight, bias).sum().backward()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_forward_mode_tangents_are_refused_rather_than_dropped():
    x, weight = torch.randn(2, 8), torch.randn(5, 8)
    with forward_ad.dual_level():
        assert torch.equal(linear(x, weight), linear(x.clone(), weight))
        with pytest.raises(NotImplementedError, match=r"linear: .*backend='reference'"):
            linear(forward_ad.make_dual(x, torch.ones_like(x)), weight)
