"""RMSNorm of gpt-oss-20b's residual: no main loop, one row a program."""

import torch
from case import Case

from gptoss_kernels.triton.rms_norm import rms_norm

D_MODEL = 2880


def forward() -> None:
    rms_norm(torch.empty(1, 512, D_MODEL, dtype=torch.bfloat16), torch.empty(D_MODEL))


def backward() -> None:
    x = torch.empty(1, 512, D_MODEL, dtype=torch.bfloat16, requires_grad=True)
    y = rms_norm(x, torch.empty(D_MODEL))
    torch.autograd.grad(y, x, torch.empty_like(y))


CASES = (
    Case("RMSNorm", "_norm_kernel", forward, nbytes=2 * D_MODEL),
    Case("RMSNorm, gradient", "_gradient_kernel", backward, nbytes=4 * D_MODEL),
)
