"""What of the residual a router reads (control), and what it cannot see (content).

    logits = W_r (w · n) + b = W n + b     n = x / s: ln2's input over its root mean square,
                                           w: ln2's weight, W = W_r diag(w) [expert, d_model]
    W = U S Vᵀ;  control = row space of W (columns of V), content = its complement

Source: the control / content split of arXiv 2604.17837, by singular values of W.

Which vector it holds on: the *normalised* n (`ln2.hook_normalized`). Any change of n's content
leaves every router logit as it is. The raw residual x is divided by its own size first: changing
its content changes s, and with it all logits, unless the content keeps its norm. `randomised`
keeps it, so it may be used on either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gptoss_hooks.points import HookPoint
from gptoss_workbench.table import Table

PAPER = "arXiv 2604.17837"


@dataclass(frozen=True, repr=False, eq=False)
class RouterSpace:
    """One router's control subspace."""

    layer: int
    basis: Float[Tensor, "inner d_model"]
    """orthonormal rows that span the control subspace, largest singular value first"""
    singular: Float[Tensor, " inner"]
    """singular values of W = W_r diag(w)"""

    @property
    def rank(self) -> int:
        """Dimensions that the router reads: at most the number of experts."""
        return len(self.singular)

    def control(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """The part of a vector that the router reads, float32, where the vector is."""
        basis = self.basis.to(x.device)
        return (x.float() @ basis.mT) @ basis

    def content(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """The part of a vector that the router cannot see, float32."""
        return x.float() - self.control(x)

    def randomised(
        self, x: Float[Tensor, "... d_model"], *, seed: int = 0
    ) -> Float[Tensor, "... d_model"]:
        """The vector with random content of the same norm; the control part is untouched."""
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(x.shape, generator=generator).to(x.device)
        noise = self.content(noise)
        size = self.content(x).norm(dim=-1, keepdim=True)
        return self.control(x) + noise / noise.norm(dim=-1, keepdim=True) * size

    def __repr__(self) -> str:
        width = self.basis.shape[1]
        return f"RouterSpace(layer {self.layer}: {self.rank} of {width} dimensions are read)"


def router_space(model: Any, layer: int) -> RouterSpace:
    """Split the space before a router into what it reads and what it does not."""
    _, singular, rows = torch.linalg.svd(_matrix(model, layer), full_matrices=False)
    known = singular > singular[0] * max(rows.shape) * torch.finfo(torch.float32).eps
    return RouterSpace(layer, rows[known].float(), singular[known].float())


def router_spectrum(model: Any, *, layers: Sequence[int] | None = None, seed: int = 0) -> Table:
    """Singular values of every router, next to those of random rows of the same norms.

    Columns: layer, component, singular, energy (share of the sum of squares), cumulative, chance
    (the energy of that component for random rows).
    """
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for layer in range(model.n_layers) if layers is None else layers:
        matrix = _matrix(model, layer).cpu()
        noise = torch.randn(matrix.shape, generator=generator, dtype=matrix.dtype)
        noise = noise * (matrix.norm(dim=1) / noise.norm(dim=1))[:, None]
        singular, random = (torch.linalg.svdvals(each) for each in (matrix, noise))
        energy, chance = (s.square() / s.square().sum() for s in (singular, random))
        number = torch.arange(len(singular))
        parts.append(
            [torch.full_like(number, layer), number, singular, energy, energy.cumsum(0), chance]
        )
    names = ("layer", "component", "singular", "energy", "cumulative", "chance")
    columns = [torch.cat(each).numpy() for each in zip(*parts, strict=True)]
    return Table(
        dict(zip(names, columns, strict=True)),
        "spectrum of the routers, ln2's weight folded in",
        f"singular values of W_r diag(w) (after {PAPER})",
        {"energy": "of the sum of squares", "cumulative": "of the sum of squares"},
        ["chance: random rows with the same norms"],
        {"model": model.name, "fingerprint": model.fingerprint, "seed": seed},
    )


def control_energy(model: Any, tokens: Any, *, layers: Sequence[int] | None = None) -> Table:
    """Share of each router's normalised input that lies in what it reads.

    Columns: layer, energy (mean over tokens of ‖control‖² / ‖n‖²), rank, chance (rank / d_model:
    a random direction), n (tokens).
    """
    chosen = list(range(model.n_layers)) if layers is None else list(layers)
    spaces = {layer: router_space(model, layer) for layer in chosen}
    batch, found = model.read(tokens), {}

    def keep(tensor: Tensor, hook: HookPoint) -> None:
        layer = int(hook.name.split(".")[1])
        x = tensor[batch.mask].float()
        found[layer] = float(
            (spaces[layer].control(x).square().sum(-1) / x.square().sum(-1)).mean()
        )

    names = [f"blocks.{layer}.ln2.hook_normalized" for layer in chosen]
    with torch.no_grad(), model.recording(names, keep):
        model(batch.tokens, attention_mask=batch.mask, return_type=None)
    rank = np.array([spaces[layer].rank for layer in chosen])
    columns = {
        "layer": np.array(chosen), "energy": np.array([found[layer] for layer in chosen]),
        "rank": rank, "chance": rank / model.config.hidden_size,
        "n": np.full(len(chosen), int(batch.mask.sum())),
    }  # fmt: skip
    return Table(
        columns,
        "share of the routers' input that they read",
        f"‖control‖² / ‖n‖² on ln2.hook_normalized (after {PAPER})",
        {"energy": "of the squared norm"},
        ["chance: rank / d_model"],
        {"model": model.name, "fingerprint": model.fingerprint},
    )


def _matrix(model: Any, layer: int) -> Float[Tensor, "expert d_model"]:
    """W = W_r diag(w), float64."""
    block = model.blocks[layer]
    return block.mlp.router.weight.double() * block.ln2.weight.double()
