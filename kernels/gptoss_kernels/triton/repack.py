"""Experts in the order in which Triton kernels read them: lossless, and back.

    codes   [expert, group, row, word]     a group is 128 inputs, a word 8 codes (see `decode`)
    scales  [expert, group, row]           the bytes of a group's four blocks in an int32

A tile of rows is contiguous, and the next stretch of inputs follows it. Gate and up rows take
turns by eight, so that both halves of a neuron are in one thread. Inputs are padded to 128 with
code 0. Form "nibbles" keeps the checkpoint's bytes, block by block in a word's bytes; form "bits"
spreads their bits over the word.
"""

from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gptoss_kernels.moe import Experts
from gptoss_kernels.triton.decode import PLACES
from gptoss_kernels.triton.tiles import architecture

WORDS = 16
"""Words of a group."""
BLOCKS = 4
"""Blocks of a group."""
TURN = 8
"""Gate rows, then as many up rows."""
FORMS = ("bits", "nibbles")


class PackedExperts(NamedTuple):
    """One layer's experts as Triton kernels read them; a block here is four of MXFP4."""

    gate_up_codes: Int[Tensor, "expert block gate_up 16"]
    gate_up_scales: Int[Tensor, "expert block gate_up"]
    gate_up_bias: Float[Tensor, "expert gate_up"]
    """gate and up in turn, as in the checkpoint"""
    down_codes: Int[Tensor, "expert block d_model 16"]
    down_scales: Int[Tensor, "expert block d_model"]
    down_bias: Float[Tensor, "expert d_model"]
    form: str
    """"bits" or "nibbles": how a word holds its codes"""
    small: bool
    """no scale byte is above 128, so that one product decodes a weight"""

    @property
    def d_model(self) -> int:
        return self.down_bias.shape[-1]

    @property
    def d_ff(self) -> int:
        return self.gate_up_bias.shape[-1] // 2

    def unpack(self) -> Experts:
        """The checkpoint's experts, byte for byte."""
        gate_up = _restore(self.gate_up_codes, self.gate_up_scales, self.form, self.d_model)
        down = _restore(self.down_codes, self.down_scales, self.form, self.d_ff)
        return Experts(
            _in_turn(gate_up[0]), _in_turn(gate_up[1]), self.gate_up_bias,
            down[0], down[1], self.down_bias,
        )  # fmt: skip


def pack_for_triton(experts: Experts, *, form: str | None = None) -> PackedExperts:
    """Order experts for the kernels of their device; done once, when a model is loaded."""
    form = form or own_form(experts.gate_up_blocks.device)
    if form not in FORMS:
        raise ValueError(f"pack_for_triton: form is one of {', '.join(FORMS)}; got {form!r}")
    highest = max(int(each.max()) for each in (experts.gate_up_scales, experts.down_scales))
    if highest == 255:
        raise ValueError("pack_for_triton: scale byte 255 means NaN; experts must be finite")
    gate_up = _order(experts.gate_up_blocks, experts.gate_up_scales, form, by_turns=True)
    down = _order(experts.down_blocks, experts.down_scales, form, by_turns=False)
    biases = experts.gate_up_bias.contiguous(), experts.down_bias.contiguous()
    return PackedExperts(*gate_up, biases[0], *down, biases[1], form, highest <= 128)


def own_form(device: torch.device | None = None) -> str:
    """The form that a device, or the current one, decodes fastest."""
    return "bits" if architecture(device) in ("sm_80", "sm_90", "interpreter") else "nibbles"


def _order(blocks: Tensor, scales: Tensor, form: str, by_turns: bool) -> tuple[Tensor, Tensor]:
    """An expert at a time, so that no second copy of all is made."""
    count, rows, width = scales.shape
    groups = -(-width // BLOCKS)
    codes = blocks.new_empty((count, groups, rows, WORDS), dtype=torch.int32)
    powers = blocks.new_empty((count, groups, rows), dtype=torch.int32)
    for e in range(count):
        padded = blocks.new_zeros((rows, groups * BLOCKS, WORDS))
        padded[:, :width] = _by_turns(blocks[e]) if by_turns else blocks[e]
        word = padded.view(rows, groups, BLOCKS, WORDS).permute(1, 0, 3, 2).contiguous()
        codes[e] = _spread(word, _to_bits()) if form == "bits" else word.view(torch.int32)[..., 0]
        bytes_ = scales.new_zeros((rows, groups * BLOCKS))
        bytes_[:, :width] = _by_turns(scales[e]) if by_turns else scales[e]
        powers[e] = bytes_.view(torch.int32).mT
    return codes, powers


def _restore(codes: Tensor, scales: Tensor, form: str, inner: int) -> tuple[Tensor, Tensor]:
    """`_order` backwards, rows left in their order."""
    count, groups, rows, _ = codes.shape
    width = inner // 32
    blocks = codes.new_empty((count, rows, width, WORDS), dtype=torch.uint8)
    for e in range(count):
        word = codes[e].contiguous().view(torch.uint8).view(groups, rows, WORDS, 4)
        if form == "bits":
            word = _spread(word, _from_bits())[..., None].view(torch.uint8)
        whole = word.permute(1, 0, 3, 2).reshape(rows, groups * BLOCKS, WORDS)
        blocks[e] = whole[:, :width]
    bytes_ = scales.mT.flatten().view(torch.uint8).view(count, rows, groups * BLOCKS)
    return blocks, bytes_[..., :width].contiguous()


def _by_turns(rows: Tensor) -> Tensor:
    """gate 0, up 0, gate 1, ... to eight gates, eight ups, ..."""
    return rows.unflatten(0, (-1, TURN, 2)).transpose(1, 2).flatten(0, 2)


def _in_turn(rows: Tensor) -> Tensor:
    """`_by_turns` backwards, on the second axis."""
    return rows.unflatten(1, (-1, 2, TURN)).transpose(2, 3).flatten(1, 3)


def _spread(word: Tensor, moves: tuple[int, ...]) -> Tensor:
    """[..., 4] bytes to int32 whose bit `moves[i]` is bit i of the four bytes."""
    table = _tables(moves, word.device)
    parts = [table[i].index_select(0, word[..., i].reshape(-1).int()) for i in range(4)]
    return (parts[0] | parts[1] | parts[2] | parts[3]).view(word.shape[:-1])


@cache
def _to_bits() -> tuple[int, ...]:
    """New place of every bit of a word of nibbles."""
    moves = [0] * 32
    for block, (sign, high, low, mantissa) in enumerate(PLACES):
        for half in (0, 1):
            for bit, place in enumerate((mantissa, low, high, sign)):
                moves[8 * block + 4 * half + bit] = place + 16 * half
    return tuple(moves)


@cache
def _from_bits() -> tuple[int, ...]:
    there = _to_bits()
    return tuple(there.index(i) for i in range(32))


@cache
def _tables(moves: tuple[int, ...], device: torch.device) -> Tensor:
    """[4, 256] int32: where the bits of a byte go, for each of a word's bytes."""
    byte = torch.arange(256)
    rows = [sum(((byte >> bit) & 1) << moves[8 * i + bit] for bit in range(8)) for i in range(4)]
    return torch.stack(rows).to(torch.int32).to(device)  # pyright: ignore
