"""Values that were recorded a token, brought into the layout of another run.

A run continued from a KV cache, or one that is still being written, finds a token's value by its
position among the row's real tokens; a run of the same shape by its place, padding and all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gptoss_hooks.points import EditError

if TYPE_CHECKING:
    from gptoss_hooks.edits.programs import Run


def aligned(
    values: Tensor,
    run: Run,
    wanted: Tensor,
    verb: str,
    tokens: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """`values` [batch, pos, ...] of one run at the tokens of another; 0 where there are none.

    `wanted` [batch, pos] are the places that need one, `tokens` and `mask` what was recorded.
    Raises EditError where rows, length or tokens do not fit.
    """
    here = run.positions
    if len(values) != len(here):
        raise EditError(f"{verb}: recorded {len(values)} rows, but {len(here)} run")
    if mask is None and not run.continued and values.shape[1] == here.shape[1]:
        at = torch.arange(here.shape[1], device=here.device).expand_as(here)
        found = torch.ones_like(at, dtype=torch.bool)
    else:
        at, found = _by_position(here, values.shape[1], mask)
    if not run.continued and bool((wanted & ~found).any()):
        raise EditError(
            f"{verb}: recorded {values.shape[1]} places a row, but {here.shape[1]} run; "
            "say which are meant with tokens="
        )
    if tokens is not None and run.tokens is not None:
        same = tokens.to(at.device).gather(1, at) == run.tokens
        if bool((wanted & found & ~same).any()):
            raise EditError(
                f"{verb}: other tokens run than were recorded; to use a recording on another "
                "prompt of equal length, give trace.routing instead of the trace"
            )
    values = values.to(here.device)
    rows = torch.arange(len(here), device=here.device)[:, None]
    return values[rows, at]


def reaches(run: Run, length: int, mask: Tensor | None = None) -> Tensor:
    """[batch, pos] True where a recording of `length` places has a value."""
    if mask is None and not run.continued and length == run.positions.shape[1]:
        return torch.ones_like(run.positions, dtype=torch.bool)
    return _by_position(run.positions, length, mask)[1]


def _by_position(here: Tensor, length: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Place of each position in the recording, and whether it has one."""
    if mask is None:
        return here.clamp(0, length - 1), (here >= 0) & (here < length)
    mask = mask.to(here.device)
    first = torch.argsort(~mask, dim=1, stable=True)  # real places in order, then padding
    found = (here >= 0) & (here < mask.sum(1, keepdim=True))
    return first.gather(1, here.clamp(0, length - 1)), found
