"""Collecting residuals at chosen places, a bounded number of layers at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gptoss_hooks import axes
from gptoss_hooks.points import HookPoint
from gptoss_workbench.text import Batch

KEPT = 1 << 29
"""Bytes of residuals kept at a time; beyond, the prompt is run again for the next layers."""


def residuals(
    model: Any, prompts: Batch, names: Sequence[str], rows: Tensor, columns: Tensor
) -> dict[str, Tensor]:
    """Run the prompts and keep hook points [batch, pos, d_model] at places, as [row, d_model]."""
    kept: dict[str, Tensor] = {}

    def keep(tensor: Tensor, hook: HookPoint) -> None:
        kept[hook.name] = tensor[rows, columns]

    deepest = max(axes.layer_of(name) or 0 for name in names)
    with torch.no_grad(), model.recording(list(names), keep):
        model(
            prompts.tokens,
            attention_mask=prompts.mask,
            return_type=None,
            stop_at_layer=deepest + 1,
        )
    return kept


def in_groups(
    model: Any, prompts: Batch, names: Sequence[str], rows: Tensor, columns: Tensor
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Give (number of the first name, residuals [layer, row, d_model], final [row, d_model]).

    Long prompts are run once for each group of names that fits into KEPT.
    """
    last = f"blocks.{model.n_layers - 1}.hook_resid_post"
    size = len(rows) * model.cfg.d_model * model.activation_dtype.itemsize
    step = max(1, KEPT // max(1, size))
    final = None
    for start in range(0, len(names), step):
        group = list(names[start : start + step])
        wanted = group if final is not None else list(dict.fromkeys([*group, last]))
        kept = residuals(model, prompts, wanted, rows, columns)
        final = kept[last] if final is None else final
        yield start, torch.stack([kept[name] for name in group]), final
