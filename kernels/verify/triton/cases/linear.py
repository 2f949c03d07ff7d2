"""Dense projections of gpt-oss-20b: one token, a prompt, gradients, float32, the unembedding."""

from typing import Any

import torch
from case import Case

from gptoss_kernels.triton.linear import linear
from gptoss_kernels.triton.unembed import unembed

D_MODEL, HEADS, VOCAB = 2880, 4096, 201088
COLS, INNER = 128, 64
"""Tiles: outputs of a program, and inputs a turn of the loop."""
TILE = COLS * INNER * 2
"""Bytes of weights a turn."""


def ask(rows: int, inner: int, outer: int, dtype=torch.bfloat16, backward: bool = False) -> None:
    x = torch.empty(rows, inner, dtype=dtype, requires_grad=backward)
    y = linear(x, torch.empty(outer, inner, dtype=torch.bfloat16), torch.empty(outer))
    if backward:
        y.backward(torch.empty_like(y))


def read_out(rows: int) -> None:
    x = torch.empty(1, rows, D_MODEL, dtype=torch.bfloat16)
    unembed(x, torch.empty(VOCAB, D_MODEL, dtype=torch.bfloat16))


def turn(rows: int, terms: int = 1) -> dict[str, Any]:
    """What a turn of the loop does for so many rows."""
    return {"flop": 2 * terms * rows * COLS * INNER, "nbytes": TILE}


FLOAT = turn(64, 3)
CASES = (
    Case("linear, queries of a token", "linear_kernel", lambda: ask(1, D_MODEL, HEADS), **turn(1)),
    Case("linear, keys of a token", "linear_kernel", lambda: ask(1, D_MODEL, 512), **turn(1)),
    Case("linear, output of a token", "linear_kernel", lambda: ask(1, HEADS, D_MODEL), **turn(1)),
    Case("linear, output of a token: the merge", "merge_kernel", lambda: ask(1, HEADS, D_MODEL),
         nbytes=512 * 4),
    Case("linear, queries of a prompt", "linear_kernel", lambda: ask(2048, D_MODEL, HEADS),
         **turn(128)),
    Case("linear, gradient to a prompt", "linear_kernel",
         lambda: ask(2048, D_MODEL, HEADS, backward=True), **turn(128)),
    Case("linear, a token in float32", "linear_kernel",
         lambda: ask(1, D_MODEL, HEADS, torch.float32), **turn(1, 3)),
    Case("linear, a prompt in float32", "linear_kernel",
         lambda: ask(2048, D_MODEL, HEADS, torch.float32), **FLOAT),
    Case("linear, float32 in three terms", "split_kernel",
         lambda: ask(2048, D_MODEL, HEADS, torch.float32), nbytes=4096),
    Case("unembed, a token", "linear_kernel", lambda: read_out(1), **turn(1)),
    Case("unembed, a prompt", "linear_kernel", lambda: read_out(512), **turn(128)),
)  # fmt: skip
