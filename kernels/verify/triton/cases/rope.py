"""Rotation of gpt-oss-20b's queries: no main loop, all heads of a token a program."""

import torch
from case import Case

from gptoss_kernels.triton.rope import rotate

HEADS, D_HEAD = 64, 64


def forward() -> None:
    x = torch.empty(1, 512, HEADS, D_HEAD, dtype=torch.bfloat16)
    rotate(x, torch.empty(1, 512, D_HEAD // 2), torch.empty(1, 512, D_HEAD // 2))


CASES = (Case("rotation of queries", "_kernel", forward, nbytes=2 * HEADS * D_HEAD),)
