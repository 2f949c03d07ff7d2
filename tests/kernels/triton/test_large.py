"""Arrays in which places take more than 32 bits, in files of which little exists."""

import torch

from gptoss_kernels.triton.launch import launch
from gptoss_kernels.triton.linear_kernels import split_kernel


def sparse(path, size, dtype):
    """Zeros in a file that takes no room."""
    return torch.from_file(str(path), shared=True, size=size, dtype=dtype)


def test_the_third_term_of_a_large_array_is_written_where_it_belongs(tmp_path):
    size, block = 2**30 + 8, 1024
    x = torch.randn(block, generator=torch.Generator().manual_seed(0))
    terms = sparse(tmp_path / "terms", 3 * size, torch.bfloat16).view(3, size)
    launch(split_kernel, (1,), x, terms, size, BLOCK=block, num_warps=4)
    found = terms[:, :block].float()
    assert torch.equal(found.sum(0), x) and (found[2] != 0).any()
