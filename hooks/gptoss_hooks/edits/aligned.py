"""Values that were recorded a token, brought into the layout of another run.

A run continued from a KV cache, or one that is still being written, finds a token's value by its
position among the row's real tokens; a run of the same shape by its place, padding and all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from gptoss_hooks.points import EditError


class Run(NamedTuple):
    """The tokens that are about to run, and where each edit acts on them."""

    positions: Int[Tensor, "batch pos"]
    """counted over a row's real tokens; -1 on padding"""
    tokens: Int[Tensor, "batch pos"] | None
    continued: bool
    """whether earlier tokens are in a KV cache, or later ones are still to be written"""
    masks: Sequence[Bool[Tensor, "batch pos"]]
    """one an edit: its tokens= and channels="""
    checked: bool = False
    """whether the edits are known to fit these tokens, so that nothing is read back to look"""


def in_order(values: Tensor, mask: Bool[Tensor, "batch pos"] | None) -> Tensor:
    """[batch, pos, ...] recorded beside padding, with each row's real places first."""
    if mask is None:
        return values
    rows = torch.arange(len(mask))[:, None]
    return values[rows, torch.argsort(~mask, dim=1, stable=True)]


def aligned(
    values: Tensor,
    run: Run,
    wanted: Tensor,
    verb: str,
    tokens: Tensor | None = None,
    ends: Tensor | None = None,
    whole: bool = False,
) -> Tensor:
    """`values` [batch, pos, ...] of one run at the tokens of another; any where there are none.

    `wanted` [batch, pos] are the places that need one, `tokens` those that were recorded and `ends`
    [batch, 1] how many, where values are `in_order`. `whole`: they are for the whole run, so that
    its rows are as long. Raises EditError where rows, length or tokens do not fit.
    """
    here = run.positions
    if len(values) != len(here):
        raise EditError(f"{verb}: recorded {len(values)} rows, but {len(here)} run")
    if _by_place(run, values.shape[1], ends):
        at = torch.arange(here.shape[1], device=here.device).expand_as(here)
        found = torch.ones_like(at, dtype=torch.bool)
    else:
        at, found = here.clamp(0, values.shape[1] - 1), reaches(run, values.shape[1], ends)
    looked = run.continued or run.checked
    fits = looked or not bool((wanted & ~found).any())
    if fits and whole and not (looked or _by_place(run, values.shape[1], ends)):
        lengths = here.amax(1, keepdim=True) + 1
        fits = (
            int(lengths.max()) == values.shape[1]
            if ends is None
            else torch.equal(lengths, ends.to(lengths))
        )
    if not fits:
        raise EditError(
            f"{verb}: recorded {values.shape[1]} places a row, but {int(here.max()) + 1} run; "
            "say which are meant with tokens="
        )
    if tokens is not None and run.tokens is not None and not run.checked:
        same = tokens.to(at.device).gather(1, at) == run.tokens
        if bool((wanted & found & ~same).any()):
            raise EditError(
                f"{verb}: other tokens run than were recorded; to use a recording on another "
                "prompt of equal length, give trace.routing instead of the trace"
            )
    values = values.to(here.device)
    rows = torch.arange(len(here), device=here.device)[:, None]
    return values[rows, at]


def reaches(run: Run, length: int, ends: Tensor | None = None) -> Tensor:
    """[batch, pos] True where a recording of `length` places, or of `ends`, has a value."""
    if _by_place(run, length, ends):
        return torch.ones_like(run.positions, dtype=torch.bool)
    end = length if ends is None else ends.to(run.positions.device)
    return (run.positions >= 0) & (run.positions < end)


def _by_place(run: Run, length: int, ends: Tensor | None) -> bool:
    return ends is None and not run.continued and length == run.positions.shape[1]
