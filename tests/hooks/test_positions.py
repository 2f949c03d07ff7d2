"""Position slices: the same token of every row, or a clear refusal."""

import pytest
import torch

from gptoss_hooks.positions import PositionSlice

RIGHT = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
LEFT = RIGHT.flip(1)
FINE = [
    (RIGHT, 0), (RIGHT, slice(0, 4)), (RIGHT, slice(2, None)), (RIGHT, [0, 2]), (RIGHT, (1, 3)),
    (LEFT, -1), (LEFT, slice(-4, None)), (LEFT, slice(None, -1)), (LEFT, [-2, -1]), (LEFT, None),
    (RIGHT[:1], -1), (RIGHT, torch.tensor([0, 1])),
]  # fmt: skip
OTHERS = [
    (RIGHT, -1), (RIGHT, 3), (RIGHT, slice(-2, None)), (RIGHT, slice(None, -1)), (RIGHT, [0, 4]),
    (LEFT, 0), (LEFT, slice(0, 4)), (LEFT, (1, 3)), (LEFT, torch.tensor([-4])),
]  # fmt: skip


@pytest.mark.parametrize(("mask", "given"), FINE, ids=str)
def test_a_slice_that_means_the_same_in_every_row_is_taken(mask, given):
    PositionSlice(given).refuse_padding(mask)


@pytest.mark.parametrize(("mask", "given"), OTHERS, ids=str)
def test_a_slice_that_counts_padding_is_refused(mask, given):
    with pytest.raises(ValueError, match=r"row [01] has 3 tokens in 5 places.*padding_side='left'"):
        PositionSlice(given).refuse_padding(mask)


def test_without_a_mask_there_is_no_padding():
    PositionSlice(-1).refuse_padding(None)
