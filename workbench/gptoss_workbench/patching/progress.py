"""How far a sweep is: a bar, and what is done when it is interrupted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptoss_workbench.patching.result import PatchResult
from gptoss_workbench.table import PARTIAL

PATIENCE = 1.0
"""Seconds before a bar is shown."""


class Progress:
    """Follows a sweep: called with the rows that are done, and the values so far."""

    def __init__(self, cells: int, show: bool):
        from tqdm.auto import tqdm

        self.bar = tqdm(total=cells, unit="cell", desc="patching", disable=not show, delay=PATIENCE)
        self.done = np.zeros(cells, bool)
        self.value: Tensor = torch.empty(cells, 0)

    def __call__(self, rows: np.ndarray, value: Tensor) -> None:
        """Note rows as done; value [cell, batch] holds theirs."""
        self.done[rows], self.value = True, value
        self.bar.update(len(rows))

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def keep(self, model: Any, finish: Callable[..., PatchResult]) -> str:
        """Put the result of the cells that are done at `model.last_patching`; says so."""
        if not self.done.any():
            return "no cell is done, so nothing is kept"
        value = self.value.masked_fill(~torch.as_tensor(self.done)[:, None], torch.nan)
        model.last_patching = finish(value, notes=(PARTIAL,)).rows(self.done)
        return f"{self.done.sum()} of {len(self.done)} cells are kept at model.last_patching"
