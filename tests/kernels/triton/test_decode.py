"""Every byte under every scale decodes to exactly what `mxfp4.unpack` says, by every method."""

import pytest
import torch
import triton
import triton.language as tl

from gptoss_kernels.moe import Experts
from gptoss_kernels.mxfp4 import unpack
from gptoss_kernels.triton.decode import decode, method
from gptoss_kernels.triton.launch import launch
from gptoss_kernels.triton.repack import pack_for_triton

FORM = {"bits": "bits", "convert": "nibbles", "plain": "nibbles"}
LAST = 254
"""The largest scale byte that is a number."""


@triton.jit
def _decode_kernel(
    codes_ptr, scales_ptr, y_ptr, rows, METHOD: tl.constexpr, SMALL: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    row, i = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, 32)
    real = row < rows
    at = row[:, None] * 16 + tl.arange(0, 16)[None, :]
    word = tl.load(codes_ptr + at, mask=real[:, None], other=0)
    scale = tl.load(scales_ptr + row, mask=real, other=0)
    blocks = decode(word, scale, METHOD, SMALL)
    for j in tl.static_range(4):
        at = row[:, None] * 128 + 32 * j + i[None, :]
        tl.store(y_ptr + at, blocks[j], mask=real[:, None])


def every_byte(highest):
    """Blocks [1, row, 4, 16] and scales [1, row, 4]: each byte under each scale, places varied."""
    scales = torch.arange(4 * (highest + 1)) // 4
    place = 4 * torch.arange(4 * (highest + 1))[:, None] + torch.arange(4) + scales[:, None]
    blocks = torch.arange(256).view(16, 16)[place % 16]
    return blocks.to(torch.uint8)[None], scales[:, None].expand(-1, 4).to(torch.uint8)[None]


def packed(blocks, scales, form):
    """Rows of the down projection: their order is kept."""
    up = torch.zeros(1, 256, 1, 16, dtype=torch.uint8)
    bias = torch.zeros(1, blocks.shape[1])
    experts = Experts(up, up[..., 0], torch.zeros(1, 256), blocks, scales, bias)
    return pack_for_triton(experts, form=form)


@pytest.mark.parametrize("highest", [128, LAST])
@pytest.mark.parametrize("name", FORM)
def test_every_byte_and_scale_decode_exactly(name, highest):
    blocks, scales = every_byte(highest)
    experts = packed(blocks, scales, FORM[name])
    assert experts.small == (highest <= 128)
    rows = blocks.shape[1]
    y = torch.empty(rows, 128, dtype=torch.bfloat16)
    launch(_decode_kernel, (-(-rows // 64),), experts.down_codes, experts.down_scales, y, rows,
           METHOD=name, SMALL=experts.small, ROWS=64)  # fmt: skip
    wanted = unpack(blocks[0], scales[0]).bfloat16()
    assert torch.equal(y.view(torch.int16), wanted.view(torch.int16))  # signs of zeros too


def test_the_method_follows_form_and_architecture():
    assert method("bits", "sm_90") == method("bits", "interpreter") == "bits"
    assert method("nibbles", "sm_120") == "convert"
    assert method("nibbles", "gfx942") == method("nibbles", "sm_80") == "plain"


def test_a_compiler_without_the_conversion_decodes_plainly(monkeypatch):
    monkeypatch.setattr("gptoss_kernels.triton.decode.CONVERTS", False)
    assert method("nibbles", "sm_100") == method("nibbles", "sm_120") == "plain"
