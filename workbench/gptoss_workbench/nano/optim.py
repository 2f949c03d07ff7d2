"""Muon for the experts' matrices, AdamW for everything else.

Muon: the momentum-averaged gradient of a matrix is replaced by the nearest matrix with equal
singular values (four Newton-Schulz steps), X <- aX + (bA + cA²)X with A = XXᵀ.
All experts of all layers go through it in one batch: [expert, row, 128] with 64 rows each.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

COEFFICIENTS = 3.4445, -4.7750, 2.0315


def orthogonalize(g: Tensor, steps: int = 4) -> Tensor:
    """g [matrix, row, column] with row <= column -> roughly orthonormal rows."""
    a, b, c = COEFFICIENTS
    x = g / (g.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class Muon:
    """Nesterov momentum, orthogonalised; wide and tall matrices of one size share a batch."""

    def __init__(self, params: Sequence[Tensor], lr: float, momentum=0.95, decay=0.01):
        self.params, self.lr, self.momentum, self.decay = list(params), lr, momentum, decay
        self.average = [torch.zeros_like(p) for p in self.params]

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """One update with the learning rate times `scale`."""
        wide = [self._direction(p, m) for p, m in zip(self.params, self.average, strict=True)]
        sizes = [w.shape[0] for w in wide]
        updates = orthogonalize(torch.cat(wide)).split(sizes)
        for p, u in zip(self.params, updates, strict=True):
            tall = p.shape[-2] > p.shape[-1]
            u = (u.mT if tall else u).reshape(p.shape)
            gain = max(1.0, p.shape[-2] / p.shape[-1]) ** 0.5
            p.mul_(1 - self.lr * scale * self.decay).add_(u, alpha=-self.lr * scale * gain)

    def _direction(self, p: Tensor, average: Tensor) -> Tensor:
        if p.grad is None:
            raise ValueError("Muon: every expert matrix needs a gradient; call backward first")
        average.mul_(self.momentum).add_(p.grad)
        g = p.grad.add(average, alpha=self.momentum).flatten(0, -3)
        return g.mT if g.shape[-2] > g.shape[-1] else g
