"""Inline PTX in the interpreter: packed registers, each instruction by hand."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from gptoss_kernels.triton import inline_ptx
from gptoss_kernels.triton.bits import narrow, widen
from gptoss_kernels.triton.launch import launch


def words(*values) -> np.ndarray:
    return np.array(values, np.uint32)


def one(instruction: str, *inputs: int) -> int:
    """$0 after one instruction on $1, $2, ..."""
    given = [words(value) for value in inputs]
    (found,) = inline_ptx.run(instruction + ";", given, [np.dtype(np.uint32)], 1)
    return int(found[0])


@pytest.mark.parametrize(
    "instruction, inputs, wanted",
    [
        ("mov.b32 $0, $1", (7,), 7),
        ("and.b32 $0, $1, 0x0F", (0xAB,), 0x0B),
        ("or.b32 $0, $1, $2", (0xA0, 0x0B), 0xAB),
        ("xor.b32 $0, $1, 0b11U", (0b01,), 0b10),
        ("not.b32 $0, $1", (0,), 0xFFFFFFFF),
        ("shl.b32 $0, $1, 4", (0xF000000F,), 0xF0),
        ("shr.u32 $0, $1, 4", (0xF000000F,), 0x0F000000),
        ("add.u32 $0, $1, $2", (0xFFFFFFFF, 2), 1),
        ("prmt.b32 $0, $1, $2, 0x5410", (0x44332211, 0x88776655), 0x66552211),
        ("prmt.b32 $0, $1, $2, 0x000F", (0x80, 0x88776655), 0x808080FF),  # the sign of byte 7
        ("lop3.b32 $0, $1, $2, $3, 0xE8", (0b1100, 0b1010, 0b0110), 0b1110),
        ("ex2.approx.ftz.f32 $0, $1", (0x40400000,), 0x41000000),
    ],
)
def test_instructions(instruction, inputs, wanted):
    assert one(instruction, *inputs) == wanted


@pytest.mark.parametrize("op", ["mul.bf16x2", "mul.rn.bf16x2", "fma.rn.bf16x2"])
def test_pairs_of_bfloat16_are_rounded_once_each(op):
    g = np.random.default_rng(0)
    a, b, c = (narrow(g.normal(size=64).astype(np.float32)) for _ in range(3))
    given = [each.view(np.uint32) for each in (a, b, c)][: 3 if "fma" in op else 2]
    text = f"{op} $0, {', '.join(f'${i + 1}' for i in range(len(given)))};"
    (found,) = inline_ptx.run(text, given, [np.dtype(np.uint32)], 1)
    exact = widen(a).astype(np.float64) * widen(b) + (widen(c) if "fma" in op else 0)
    assert (found.view(np.uint16) == narrow(exact)).all()


def test_outputs_come_first_and_neighbours_share_a_register():
    text = "{ .reg .b32 low; and.b32 low, $2, 0x00FF00FF; mov.b32 $0, low; shr.b32 $1, $2, 8; }"
    given = np.arange(8, dtype=np.uint8).reshape(2, 4)
    kinds = [np.dtype(np.uint8), np.dtype(np.uint8)]
    low, shifted = inline_ptx.run(text, [given], kinds, 4)
    assert low.tolist() == [[0, 0, 2, 0], [4, 0, 6, 0]]
    assert shifted.tolist() == [[1, 2, 3, 0], [5, 6, 7, 0]]


def test_a_register_is_taken_apart():
    text = "{ .reg .b16 low, high; mov.b32 {low, high}, $1; shl.b32 $0, high, 4; }"
    assert one(text, 0x00120034) == 0x120


def test_a_byte_holds_two_codes_of_four_bits():
    table = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    table += [-value for value in table]
    for byte in range(256):
        pair = np.array([one("cvt.rn.bf16x2.e2m1x2 $0, $1", byte)], np.uint32).view(np.uint16)
        found = widen(pair)
        wanted = np.array([table[byte & 15], table[byte >> 4]])
        assert (found == wanted).all() and (np.signbit(found) == np.signbit(wanted)).all()


def test_comments_are_skipped():
    assert one("// a comment; with a semicolon\nmov.b32 $0, $1", 3) == 3


def test_an_unknown_instruction_is_named():
    with pytest.raises(NotImplementedError, match=r"sad\.u32"):
        one("sad.u32 $0, $1, $1", 1)


@triton.jit
def _swap_halves(x_ptr, y_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(x_ptr + i)
    y = tl.inline_asm_elementwise(
        "prmt.b32 $0, $1, $1, 0x1032;", "=r,r", [x], dtype=tl.bfloat16, is_pure=True, pack=2
    )
    tl.store(y_ptr + i, y)


def test_a_kernel_may_use_it_on_bfloat16():
    x, y = torch.randn(8).bfloat16(), torch.empty(8, dtype=torch.bfloat16)
    launch(_swap_halves, (1,), x, y, N=8)
    assert torch.equal(y, x.view(4, 2).flip(1).reshape(-1))
