"""The mixture of experts at gpt-oss-20b's shapes: packed weights, forward and backward.

A turn of the forward loop decodes 128 inputs of 128 rows and multiplies them by the tile's slots;
useful bytes are codes, scales and activations.
"""

from functools import partial

import torch
from case import DECODING, Case

from gptoss_kernels.moe import ExpertTap
from gptoss_kernels.triton.moe import ExpertEdits, moe
from gptoss_kernels.triton.repack import PackedExperts, own_form

D_MODEL, D_FF, EXPERTS, K = 2880, 2880, 32, 4
GROUPS = -(-D_MODEL // 128)
WEIGHTS = 128 * 128
"""Decoded in a turn of the forward loop."""
BYTES = WEIGHTS // 2 + WEIGHTS // 32


def experts() -> PackedExperts:
    """Never read: nothing runs."""
    word, bias = torch.int32, torch.bfloat16
    return PackedExperts(
        torch.empty(EXPERTS, GROUPS, 2 * D_FF, 16, dtype=word),
        torch.empty(EXPERTS, GROUPS, 2 * D_FF, dtype=word),
        torch.empty(EXPERTS, 2 * D_FF, dtype=bias),
        torch.empty(EXPERTS, GROUPS, D_MODEL, 16, dtype=word),
        torch.empty(EXPERTS, GROUPS, D_MODEL, dtype=word),
        torch.empty(EXPERTS, D_MODEL, dtype=bias),
        own_form(),
        small=True,
    )


def forward(tokens: int, dtype=torch.bfloat16, tapped: bool = False, edited: bool = False) -> None:
    indices = torch.zeros(1, tokens, K, dtype=torch.int64)
    tap = ExpertTap(gate=torch.clone, up=torch.clone) if tapped else None
    edits = None
    if edited:
        table = torch.empty(1, D_FF, dtype=dtype)
        edits = ExpertEdits(torch.ones(1, tokens, K), torch.ones(EXPERTS, D_FF), indices, table)
    x = torch.empty(1, tokens, D_MODEL, dtype=dtype)
    moe(x, indices, torch.empty(1, tokens, K), experts(), tap=tap, edits=edits)


def backward(tokens: int, dtype=torch.bfloat16) -> None:
    indices, weights = torch.zeros(1, tokens, K, dtype=torch.int64), torch.empty(1, tokens, K)
    x = torch.empty(1, tokens, D_MODEL, dtype=dtype, requires_grad=True)
    y = moe(x, indices, weights, experts())
    torch.autograd.grad(y, x, torch.empty_like(y))


def forward_case(name: str, kernel: str, call, rows: int, terms: int = 1, **more) -> Case:
    """`rows` slots in a tile, `terms` products for each."""
    flop, nbytes = 2 * WEIGHTS * rows * terms, BYTES + 2 * 128 * rows * terms
    return Case(name, kernel, call, flop, nbytes, weights=WEIGHTS, **more)


def rows_on(**rows: int) -> dict:
    """What differs where a tile holds other numbers of slots."""
    return {
        target: {"flop": 2 * WEIGHTS * count, "nbytes": BYTES + 2 * 128 * count}
        for target, count in rows.items()
    }


DECODE, PREFILL = partial(forward, 1), partial(forward, 2048)
LARGE = rows_on(sm_100=64, gfx942=64)
WIDE = torch.float32
CASES = (
    forward_case("experts, up, decode", "up_kernel", DECODE, 16, most=DECODING),
    forward_case("experts, down, decode", "down_kernel", DECODE, 16, most=DECODING),
    forward_case("experts, up, decode, gate and up seen", "up_kernel",
                 partial(forward, 1, tapped=True), 16, most=DECODING),
    forward_case("experts, up, decode, edited", "up_kernel",
                 partial(forward, 1, edited=True), 16, most=DECODING),
    forward_case("experts, up, prefill of 2048", "up_kernel", PREFILL, 128, arch=LARGE),
    forward_case("experts, down, prefill of 2048", "down_kernel", PREFILL, 128, arch=LARGE),
    forward_case("experts, up, decode in float32", "up_kernel", partial(forward, 1, WIDE), 16, 3),
    Case("experts, gradient of 2048", "rows_gradient_kernel", partial(backward, 2048),
         flop=2 * 64 * 128 * 64, nbytes=64 * 68 + 2 * 64 * 64, weights=64 * 128),
    Case("experts, gradient in float32", "rows_gradient_kernel", partial(backward, 16, WIDE),
         flop=3 * 2 * 64 * 128 * 16, nbytes=64 * 68 + 3 * 2 * 64 * 16, weights=64 * 128),
)  # fmt: skip
