"""MXFP4: low nibble first, one power of two for 32 weights, decoded without loss."""

import math
from inspect import unwrap

import pytest
import torch

from gptoss_kernels import mxfp4
from gptoss_kernels.mxfp4 import pack, packed_linear, unpack

CODES = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]


def packed(rows, blocks, seed=0, scales=(118, 124)):
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (rows, blocks, 16), generator=g, dtype=torch.uint8)
    return codes, torch.randint(*scales, (rows, blocks), generator=g).to(torch.uint8)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_all_sixteen_codes_low_nibble_first():
    byte = torch.tensor([low | (low + 1 & 15) << 4 for low in range(16)], dtype=torch.uint8)
    weight = unpack(byte[None], torch.tensor([127], dtype=torch.uint8))
    expected = [CODES[(i // 2 + i % 2) % 16] for i in range(32)]
    assert weight.tolist() == expected
    signs = [math.copysign(1, v) for v in weight.tolist()]
    assert signs == [math.copysign(1, v) for v in expected]  # -0 keeps its sign


@pytest.mark.parametrize("scale", [0, 1, 126, 127, 128, 250, 254])
def test_a_scale_byte_is_a_power_of_two(scale):
    """2^-127 is no normal float32, 6 · 2^127 is infinite; both come out as float32 has them."""
    blocks = torch.full((1, 16), 0x72, dtype=torch.uint8)  # 1, 6, 1, 6, …
    found = unpack(blocks, torch.tensor([scale], dtype=torch.uint8))
    exact = torch.tensor([2.0 ** (scale - 127), 6 * 2.0 ** (scale - 127)], dtype=torch.float64)
    assert torch.equal(found[:2], exact.float())
    assert found[0] > 0


def test_scale_byte_255_is_nan():
    assert unpack(*[torch.full(s, 255, dtype=torch.uint8) for s in ((1, 16), (1,))]).isnan().all()


def test_bfloat16_holds_every_weight():
    blocks, scales = packed(5, 3, scales=(4, 250))
    assert torch.equal(unpack(blocks, scales), unpack(blocks, scales, torch.bfloat16).float())


def test_unpack_equals_a_float64_loop():
    blocks, scales = packed(3, 3)
    weight = unpack(blocks, scales)
    for row in range(3):
        for column in range(96):
            block, place = divmod(column, 32)
            byte = int(blocks[row, block, place // 2])
            code = byte >> 4 if place % 2 else byte & 15
            value = CODES[code] * 2.0 ** (int(scales[row, block]) - 127)
            assert weight[row, column] == value


def test_what_was_unpacked_packs_to_the_same_values():
    weight = unpack(*packed(64, 5, scales=(3, 252)))
    again = unpack(*pack(weight))
    assert torch.equal(again, weight)
    assert torch.equal(again.signbit(), weight.signbit())


def test_pack_rounds_to_the_nearest_value():
    weight = draw(7, 96)
    blocks, scales = pack(weight)
    found = unpack(blocks, scales).double()
    grid = torch.tensor(CODES, dtype=torch.float64)
    unit = torch.exp2(scales.double() - 127).repeat_interleave(32, -1)
    nearest = (grid * unit[..., None] - weight.double()[..., None]).abs().amin(-1)
    assert torch.equal((found - weight.double()).abs(), nearest)


def test_the_shared_exponent_follows_the_largest_weight():
    weight = torch.zeros(4, 32)
    weight[:, 5] = torch.tensor([4.0, 6.0, 7.9, 8.0])
    assert pack(weight)[1].flatten().tolist() == [127, 127, 127, 128]


def test_a_block_of_zeros_stays_zero():
    assert torch.equal(unpack(*pack(torch.zeros(2, 64))), torch.zeros(2, 64))


def test_tiles_give_what_one_tile_gives(monkeypatch):
    x, (blocks, scales) = draw(5, 96), packed(33, 3)
    whole = packed_linear(x, blocks, scales)
    monkeypatch.setattr(mxfp4, "TILE", 7 * 96)
    torch.testing.assert_close(packed_linear(x, blocks, scales), whole)
    x.requires_grad_()
    packed_linear(x, blocks, scales).sum().backward()
    torch.testing.assert_close(x.grad, unpack(blocks, scales).sum(0).expand(5, -1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_linear_equals_the_decoded_product(dtype):
    x, (blocks, scales) = draw(5, 96).to(dtype), packed(33, 3)
    y = packed_linear(x, blocks, scales)
    exact = x.double() @ unpack(blocks, scales).double().mT
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5)


def test_the_gradient_equals_autograd_on_decoded_weights():
    x, grad, (blocks, scales) = draw(5, 96), draw(5, 33, seed=1), packed(33, 3)
    ours, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    (packed_linear(ours, blocks, scales) * grad).sum().backward()
    (exact @ unpack(blocks, scales).double().mT * grad.double()).sum().backward()
    torch.testing.assert_close(ours.grad.double(), exact.grad, rtol=1e-5, atol=1e-5)


def test_shapes_that_do_not_fit_are_refused():
    blocks, scales = packed(2, 3)
    with pytest.raises(ValueError, match="unpack: blocks"):
        unwrap(unpack)(blocks, scales[:, :2])
    with pytest.raises(ValueError, match="packed_linear: x ends in 64, the weight maps 96"):
        unwrap(packed_linear)(draw(1, 64), blocks, scales)
    with pytest.raises(ValueError, match="multiple of 32; got 33"):
        pack(draw(2, 33))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match="finite"):
        pack(torch.full((1, 32), value))
