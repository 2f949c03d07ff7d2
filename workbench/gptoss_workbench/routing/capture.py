"""What the hooks keep of one batch: every router's choice, for real tokens only.

A margin is the logit of the last expert chosen above the best one left out: how far the choice was
from being another. Norms and peaks are of an expert's output before it is weighed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gptoss_hooks.points import HookPoint

KEEP = ("logits", "margins", "norms", "peaks")
"""What can be kept beside experts and weights."""


class Capture:
    """Collects one batch after another: `start`, the model's run under `keep`, `finish`."""

    def __init__(self, layers: Sequence[int], n_experts: int, keep: Sequence[str]):
        self.layers, self.wanted = tuple(layers), frozenset(keep)
        self.id_dtype = torch.int8 if n_experts <= 127 else torch.int16
        self.rows = torch.empty(0)
        self.kept: dict[str, list[Tensor]] = {}
        self.logits = torch.empty(0)

    @property
    def names(self) -> list[str]:
        """The hook points that are needed, no more."""
        points = ["hook_expert_indices", "hook_expert_weights"]
        if self.wanted & {"logits", "margins"}:
            points.append("hook_router_logits")
        if self.wanted & {"norms", "peaks"}:
            points.append("hook_expert_out")
        return [f"blocks.{layer}.mlp.{point}" for layer in self.layers for point in points]

    def start(self, mask: Tensor) -> None:
        """Begin a batch whose real tokens are where `mask` is."""
        self.rows = mask.flatten().nonzero()[:, 0]
        self.kept = {}

    def keep(self, tensor: Tensor, hook: HookPoint) -> None:
        """Take what one hook point shows."""
        point = hook.name.rpartition(".")[2]
        if point == "hook_expert_out":
            self._outputs(tensor)
            return
        real = tensor.flatten(0, 1).index_select(0, self.rows)
        if point == "hook_router_logits":
            self.logits = real
        elif point == "hook_expert_indices":
            self._add("experts", real.to(self.id_dtype))
            if "logits" in self.wanted:
                self._add("logits", self.logits.half())
            if "margins" in self.wanted:
                self._add("margins", margins(self.logits, real).half())
        else:
            self._add("weights", real.half())

    def _outputs(self, out: Tensor) -> None:
        """Norm and largest entry of every slot's output [batch, pos, k, d_model]."""
        found = {
            "norms": lambda: torch.linalg.vector_norm(out, dim=-1),
            "peaks": lambda: torch.linalg.vector_norm(out, ord=torch.inf, dim=-1),
        }
        for name in self.wanted & found.keys():
            self._add(name, found[name]().flatten(0, 1).index_select(0, self.rows))

    def _add(self, name: str, values: Tensor) -> None:
        self.kept.setdefault(name, []).append(values)

    def finish(self) -> dict[str, np.ndarray]:
        """What the batch's real tokens showed, [token, layer, ...]."""
        out = {name: torch.stack(each, 1).cpu().numpy() for name, each in self.kept.items()}
        self.kept = {}
        return out


def margins(logits: Float[Tensor, "token expert"], chosen: Int[Tensor, "token k"]) -> Tensor:
    """Logit of the last chosen above the best left out, a token; infinite where none is."""
    last = logits.gather(-1, chosen[:, -1:].long())[:, 0]
    return last - logits.scatter(-1, chosen.long(), -torch.inf).amax(-1)
