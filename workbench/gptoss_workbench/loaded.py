"""A loaded model stays as it was loaded: its dtype, its device, and its files."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from gptoss_workbench.lens_config import LensConfig


class Loaded(nn.Module):
    """Refuses what torch offers for every module and a mapped, packed model cannot do.

    `.to()`, `.float()`, `.cuda()` ... pass where they ask for what the model already has. A deep
    copy has memory of its own; pickles are refused. So is torch.save of a state_dict(), by torch:
    experts and norms are views of one file. `save_checkpoint` writes what the model is now.
    """

    activation_dtype: torch.dtype
    cfg: LensConfig
    folder: Path | None
    """Where it was loaded from, if from a folder; `save_checkpoint` takes the tokenizer there."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """What .to(), .half(), .cuda() ... go through."""
        dtype, device = self.activation_dtype, self.cfg.device
        now = torch.empty(0, dtype=dtype, device=device)
        elsewhere = f"a loaded model stays on {device}: use load(device=...) for another one"
        try:
            wanted = fn(now)
        except (RuntimeError, AssertionError) as error:  # a device that torch cannot reach
            raise ValueError(elsewhere) from error
        if wanted.device != now.device:
            raise ValueError(elsewhere)
        if wanted.dtype != dtype:
            raise ValueError(
                f"a loaded model stays in {str(dtype)[6:]}, over weights as stored: use "
                "load(dtype='bfloat16') or load(dtype='float32') for the other one"
            )
        stored = torch.empty(0, dtype=torch.bfloat16, device=device)
        if fn(stored).dtype != stored.dtype:
            return self  # asks for the dtype that activations have; weights stay as stored
        return super()._apply(fn, recurse)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} is not pickled: its weights are mapped from files and would be "
            "copied wholesale. Load it where it is needed, load(folder); what was changed is kept "
            "by save_checkpoint(model, folder). Of single tensors save a .clone(): torch.save of "
            "a view writes the whole file that it is mapped from."
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(deepcopy(self.__dict__, memo))
        return copied
