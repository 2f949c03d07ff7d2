"""Directions by difference of means, with random ones of the same length beside them.

    d_layer = mean over positive prompts of x_layer - mean over negative prompts of x_layer

Marks & Tegmark 2310.06824; Arditi et al. 2406.11717 (read at the last prompt tokens). A direction
is worth little without a control: `random` draws directions of equal norm, at every layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gptoss_hooks.points import HookPoint
from gptoss_workbench.patching.nodes import listed
from gptoss_workbench.table import Table

if TYPE_CHECKING:
    from gptoss_hooks.edits import Edit
    from gptoss_workbench.model import GptOss

SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
SOURCE = "difference of means: Marks & Tegmark 2310.06824; Arditi et al. 2406.11717"


@dataclass(frozen=True, repr=False, eq=False)
class Directions:
    """One direction a layer, at one site.

    found = difference_of_means(model, refused, answered)
    found.vector(2), found.random(2, draws=10), found.table()
    """

    vectors: Tensor
    """[layer, d_model] float32, in the activation's own units."""
    layers: tuple[int, ...]
    site: str
    n_positive: int
    n_negative: int
    auc: np.ndarray
    """[layer] how well projections part prompts that the direction was not made from."""

    @property
    def norms(self) -> np.ndarray:
        """[layer] length of each direction."""
        return self.vectors.norm(dim=-1).numpy()

    def vector(self, layer: int) -> Tensor:
        """The direction of one layer, [d_model]."""
        if layer not in self.layers:
            raise ValueError(f"no direction for layer {layer}; there are {list(self.layers)}")
        return self.vectors[self.layers.index(layer)]

    def random(self, layer: int, *, draws: int = 10, seed: int = 0) -> Tensor:
        """Random directions of the same norm, [draw, d_model], uniform on the sphere."""
        vector = self.vector(layer)
        generator = torch.Generator().manual_seed(seed * 100_003 + layer)
        drawn = torch.randn(draws, len(vector), generator=generator)
        return drawn / drawn.norm(dim=-1, keepdim=True) * vector.norm()

    def as_edit(self, layer: int, strength: float = 1.0) -> Edit:
        """The addition of `strength` times a layer's direction, as an edit."""
        from gptoss_hooks.edits import steer

        return steer(self.site, self.vector(layer), strength, layers=[layer])

    def table(self) -> Table:
        """One row a layer: norm, and held-out separation of the prompts (chance 0.5)."""
        columns = {
            "layer": np.array(self.layers),
            "norm": self.norms,
            "auc": self.auc,
            "chance": np.full(len(self.layers), 0.5),
            "n": np.full(len(self.layers), self.n_positive + self.n_negative),
        }
        title = f"Directions at {self.site}: {self.n_positive} positive, {self.n_negative} negative"
        note = "auc: a direction from one half of the prompts, projections of the other; both ways"
        return Table(columns, title, SOURCE, notes=(note,))

    def __repr__(self) -> str:
        return repr(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def difference_of_means(
    model: GptOss,
    positive: Sequence[str],
    negative: Sequence[str],
    *,
    site: str = "resid_post",
    layers: Sequence[int] | None = None,
    positions: int | Sequence[int] | str = -1,
    batch: int = 16,
) -> Directions:
    """Mean activation on positive prompts minus that on negative ones, at every layer.

    Args:
        site: resid_pre, resid_mid, resid_post, attn_out or mlp_out.
        positions: places from the end to average over (-1: the last token), or "all".
        batch: prompts of one forward pass.
    """
    if site not in SITES:
        raise ValueError(f"site is one of {', '.join(SITES)}; got {site!r}")
    if isinstance(positive, str) or isinstance(negative, str):
        raise ValueError("difference_of_means: expected lists of prompts; got one text")
    if min(len(positive), len(negative)) < 2:
        raise ValueError(
            f"difference_of_means needs two prompts or more of each kind (one half checks the "
            f"other); got {len(positive)} and {len(negative)}"
        )
    at = tuple(listed("layers", layers, model.n_layers).tolist())
    sides = [_activations(model, list(s), site, at, positions, batch) for s in (positive, negative)]
    vectors = sides[0].mean(0) - sides[1].mean(0)
    return Directions(vectors, at, site, len(positive), len(negative), _held_out_auc(*sides))


@torch.no_grad()
def _activations(
    model: GptOss, texts: list[str], site: str, layers: tuple[int, ...], positions: Any, batch: int
) -> Tensor:
    """Each prompt's mean activation over its positions, [prompt, layer, d_model] float32."""
    names, out = [f"blocks.{layer}.hook_{site}" for layer in layers], []
    for i in range(0, len(texts), batch):
        tokens, mask = model.read(texts[i : i + batch], padding_side="left")
        chosen = _chosen(mask, positions).float()[..., None]
        kept: dict[str, Tensor] = {}

        def keep(tensor: Tensor, hook: HookPoint, chosen=chosen, kept=kept) -> None:
            kept[hook.name] = ((tensor.float() * chosen).sum(1) / chosen.sum(1)).cpu()

        with model.recording(names, keep):
            model(tokens, attention_mask=mask, return_type=None)
        out.append(torch.stack([kept[name] for name in names], 1))
    return torch.cat(out)


def _chosen(mask: Tensor, positions: Any) -> Tensor:
    """Which places of left-padded prompts are averaged, [batch, pos]."""
    if isinstance(positions, str):
        if positions != "all":
            raise ValueError(f"positions: places from the end, or 'all'; got {positions!r}")
        return mask
    places = [positions] if isinstance(positions, int) else list(positions)
    shortest = int(mask.sum(1).min())
    if not places or any(not -shortest <= p <= -1 for p in places):
        raise ValueError(
            f"positions count from the end, -1 to {-shortest} (the shortest prompt's length); "
            f"got {positions}"
        )
    chosen = torch.zeros_like(mask)
    chosen[:, places] = True
    return chosen


def _held_out_auc(positive: Tensor, negative: Tensor) -> np.ndarray:
    """[layer] AUC of each half's prompts along the other half's direction, averaged."""
    found = []
    for half in (0, 1):
        made = positive[half::2].mean(0) - negative[half::2].mean(0)
        up, down = ((x[1 - half :: 2] * made).sum(-1) for x in (positive, negative))
        higher = (up[:, None] > down).float() + 0.5 * (up[:, None] == down).float()
        found.append(higher.mean((0, 1)))
    return torch.stack(found).mean(0).numpy()
