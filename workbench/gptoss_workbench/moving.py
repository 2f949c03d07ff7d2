"""Weights on their way to a device: each is moved when it is asked for, and then forgotten here.

A model asks once for every tensor, layer by layer, and a backend may reorder a layer's experts
before the next layer is asked for: the device holds what is final and one layer besides. A shard
is unmapped with the last tensor taken out of it.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


class Moving(Mapping[str, Tensor]):
    """Empties `tensors` as they are taken."""

    def __init__(self, tensors: dict[str, Tensor], device: torch.device):
        self.tensors, self.device = tensors, device

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors.pop(name).to(self.device)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)
