"""A logit taken apart: what every part of the model wrote into it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gptoss_workbench.table import Table

SOURCE = (
    "part = (write / scale * w_norm) @ (W_U[target] - W_U[against]), scale frozen; direct paths of "
    "Elhage et al. 2021; nothing folded"
)
BY = ("part", "head", "expert", "component", "layer")


@dataclass(frozen=True, repr=False, eq=False)
class LogitAttribution:
    """Parts of each place's logit, in logits; they sum to it. NaN and -1 where there is no place.

    embed + heads + biases + slots = logit - residue
    """

    embed: Float[Tensor, "batch pos"]
    """The token's embedding."""
    heads: Float[Tensor, "layer batch pos head"]
    """Every head, its share of b_V included."""
    biases: Float[Tensor, "layer batch pos"]
    """b_O of every layer."""
    slots: Float[Tensor, "layer batch pos k"]
    """Every chosen expert, weighed, its b2 included; best expert first."""
    experts: Int[Tensor, "layer batch pos k"]
    """Which expert sits in each slot."""
    logit: Float[Tensor, "batch pos"]
    """The logit itself, or the difference, in float32."""
    target: Int[Tensor, "batch pos"]
    """The token whose logit it is."""
    against: Int[Tensor, "batch pos"]
    """The token whose logit was taken away; -1 is none."""
    places: Int[Tensor, "batch pos"]
    """Column of each place in the padded prompt."""
    strings: Mapping[int, str] | None = None
    """Text of the tokens named here."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What made it."""

    @property
    def mask(self) -> Bool[Tensor, "batch pos"]:
        """Where a row has a place."""
        return self.places >= 0

    @property
    def total(self) -> Float[Tensor, "batch pos"]:
        """The sum of all parts."""
        return self.stack()[0].double().sum(0).float()

    @property
    def residue(self) -> Float[Tensor, "batch pos"]:
        """Logit less the sum of its parts: rounding (in bfloat16, of the stream itself), and
        whatever an edit of the residual stream added."""
        return self.logit - self.total

    def stack(self, by: str = "part") -> tuple[Float[Tensor, "part batch pos"], list[str]]:
        """All parts of one kind of split, with their labels; each kind sums to the logit.

        "part" is every head and every slot apart, "component" attention and experts of a layer,
        "layer" a block.
        """
        layers = range(len(self.heads))
        first = (self.embed[None], ["embed"])
        if by == "part":
            groups = [first, *(piece for i in layers for piece in self._pieces(i))]
        elif by == "component":
            groups = [first]
            for i in layers:
                pair = torch.stack([self._attention[i], self.slots[i].sum(-1)])
                groups.append((pair, [f"{i}_attn_out", f"{i}_mlp_out"]))
        elif by == "layer":
            groups = [first, (self._attention + self.slots.sum(-1), [f"{i}" for i in layers])]
        else:
            raise ValueError(f'stack: expected by="part", "component" or "layer"; got {by!r}')
        return torch.cat([g for g, _ in groups]), [name for _, names in groups for name in names]

    @property
    def _attention(self) -> Tensor:
        return self.heads.sum(-1) + self.biases

    def _pieces(self, layer: int) -> list[tuple[Tensor, list[str]]]:
        heads, slots = self.heads[layer].movedim(-1, 0), self.slots[layer].movedim(-1, 0)
        return [
            (heads, [f"L{layer}H{h}" for h in range(len(heads))]),
            (self.biases[layer][None], [f"L{layer}b_O"]),
            (slots, [f"L{layer}slot{j}" for j in range(len(slots))]),
        ]

    def table(self, by: str = "part") -> Table:
        """A long table: "part", "component", "layer", or only the "head" or "expert" rows."""
        if by not in BY:
            raise ValueError(f"table: by is one of {', '.join(BY)}; got {by!r}")
        if by == "head":
            columns = self._of_heads()
        else:
            columns = self._of_experts() if by == "expert" else self._of_parts(by)
        title = f"Direct logit attribution by {by}"
        notes = (f"largest |logit - sum of parts| {self._largest():.2g}",)
        units = {"value": "logits"}
        return Table(columns, title, SOURCE, units, notes, self.provenance)

    def _largest(self) -> float:
        return float(self.residue[self.mask].abs().max())

    def _places(self, row: np.ndarray, pos: np.ndarray) -> dict[str, np.ndarray]:
        target, against = self.target.numpy()[row, pos], self.against.numpy()[row, pos]
        columns = {"row": row, "pos": self.places.numpy()[row, pos], "target": self._texts(target)}
        return columns | ({"against": self._texts(against)} if (against >= 0).any() else {})

    def _texts(self, tokens: np.ndarray) -> np.ndarray:
        known = self.strings or {}
        return np.array([known.get(t, str(t)) for t in tokens.tolist()], dtype=object)

    def _of_parts(self, by: str) -> dict[str, np.ndarray]:
        values, labels = self.stack(by)
        part, row, pos = self.mask.expand(values.shape).nonzero().T.numpy()
        names = np.array(labels, dtype=object)[part]
        return {"part": names, **self._places(row, pos), "value": values.numpy()[part, row, pos]}

    def _of_heads(self) -> dict[str, np.ndarray]:
        layer, row, pos, head = self._index(self.heads)
        values = self.heads.numpy()[layer, row, pos, head]
        return {"layer": layer, "head": head, **self._places(row, pos), "value": values}

    def _of_experts(self) -> dict[str, np.ndarray]:
        layer, row, pos, rank = self._index(self.slots)
        expert = self.experts.numpy()[layer, row, pos, rank]
        values = self.slots.numpy()[layer, row, pos, rank]
        places = self._places(row, pos)
        return {"layer": layer, "expert": expert, "rank": rank, **places, "value": values}

    def _index(self, like: Tensor) -> np.ndarray:
        return self.mask[None, ..., None].expand(like.shape).nonzero().T.numpy()

    def __repr__(self) -> str:
        n_parts = len(self.stack()[1])
        many = int(self.mask.sum())
        if many != 1:
            return (
                f"LogitAttribution: {many} places, {n_parts} parts, "
                f"largest |logit - sum| {self._largest():.2g}"
            )
        table = self.table()
        order = np.argsort(-np.abs(table["value"]), kind="stable")
        return f"logit {float(self.logit[self.mask]):.4f}\n{table.rows(order)!r}"
