"""Triton's unembedding is its projection."""

import torch

from gptoss_kernels.triton.linear import linear
from gptoss_kernels.triton.unembed import unembed


def test_logits_have_the_dtype_of_the_residual_and_the_bits_of_a_projection():
    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, 45, generator=drawn).bfloat16()
    weight = torch.randn(131, 45, generator=drawn).bfloat16()
    logits = unembed(x, weight)
    assert logits.shape == (1, 3, 131) and logits.dtype == torch.bfloat16
    assert torch.equal(logits, linear(x, weight, dtype=torch.float32).bfloat16())
