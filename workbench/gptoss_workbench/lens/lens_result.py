"""What a lens saw: every layer's prediction at every place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gptoss_workbench.intervals import bootstrap
from gptoss_workbench.table import Table

if TYPE_CHECKING:
    import pandas

SOURCE = (
    "logit lens: softmax(W_U norm_final(x)) (nostalgebraist 2020); tuned lens: Belrose et al. "
    "2303.08112; KL(final || layer)"
)
NATS = {name: "nats" for name in ("log_prob", "target_log_prob", "kl", "entropy")}


@dataclass(frozen=True, repr=False, eq=False)
class LensResult:
    """Every read site's prediction of the next token; -1 and NaN where a row has no token.

    The layer axis holds the sites that were read, in firing order: see `layers` and `sites`.
    """

    tokens: Int[Tensor, "layer batch pos k"]
    """Most likely tokens, best first."""
    log_probs: Float[Tensor, "layer batch pos k"]
    """Theirs, in nats."""
    log_sum_exp: Float[Tensor, "layer batch pos"]
    """Of the logits."""
    entropy: Float[Tensor, "layer batch pos"]
    """Nats."""
    target_log_prob: Float[Tensor, "layer batch pos"]
    """Nats; NaN without a target."""
    rank: Int[Tensor, "layer batch pos"]
    """How many tokens are more likely than the target; -1 without a target."""
    kl: Float[Tensor, "layer batch pos"]
    """KL(final || layer) in nats; NaN if it was left out."""
    layers: tuple[int, ...]
    """The block of each entry of the layer axis."""
    sites: tuple[str, ...]
    """The hook point of each entry: "resid_post" ..."""
    prompt: Int[Tensor, "batch pos"]
    """The token at each place."""
    target: Int[Tensor, "batch pos"]
    """The token whose rank was followed; -1 is none."""
    places: Int[Tensor, "batch pos"]
    """Column of each place in the padded prompt."""
    strings: Mapping[int, str] | None = None
    """Text of every token that occurs here."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What made it: model, tokens' hash, lens."""

    @property
    def mask(self) -> Bool[Tensor, "batch pos"]:
        """Where a row has a token."""
        return self.places >= 0

    def commitment(self, site: str = "resid_post") -> Int[Tensor, "batch pos"]:
        """First read layer from which on the most likely token stays the last one's; -1 on pads."""
        rows = [i for i, each in enumerate(self.sites) if each == site]
        if not rows:
            raise ValueError(f"commitment: this result read {sorted(set(self.sites))}, not {site}")
        top = self.tokens[rows, ..., 0]
        agrees = (top == top[-1]).flip(0).long().cumprod(0).sum(0)  # layers that agree at the end
        layers = torch.tensor([self.layers[i] for i in rows])
        return torch.where(self.mask, layers[len(rows) - agrees], -1)

    def text(self, token: int) -> str:
        """A token's text, or its number where there is no tokenizer."""
        return str(token) if self.strings is None else self.strings.get(int(token), "")

    def table(self) -> Table:
        """A row for every site and place."""
        site, row, pos = (a.numpy() for a in self.mask.expand(self.rank.shape).nonzero().T)
        at = (site, row, pos)
        top, target = self.tokens[..., 0].numpy()[at], self.target.numpy()[row, pos]
        prompt = self.prompt.numpy()[row, pos]
        columns = {
            "layer": np.array(self.layers)[site],
            "site": np.array(self.sites)[site],
            "row": row,
            "pos": self.places.numpy()[row, pos],
            "token": self._texts(prompt),
            "top": self._texts(top),
            "log_prob": self.log_probs[..., 0].numpy()[at],
            "target": self._texts(target),
            "target_log_prob": self.target_log_prob.numpy()[at],
            "rank": self.rank.numpy()[at],
            "kl": self.kl.numpy()[at],
            "entropy": self.entropy.numpy()[at],
        }
        return Table(columns, "Lens", SOURCE, NATS, (), self.provenance)

    def summary(self) -> Table:
        """A row for every site: means over places, with 95 % intervals over prompts of KL."""
        low, high = self._bounds()
        committed = self.commitment(self.sites[-1])[self.mask]
        columns = {
            "layer": np.array(self.layers),
            "site": np.array(self.sites),
            "kl": _mean(self.kl, self.mask),
            "low": low,
            "high": high,
            "entropy": _mean(self.entropy, self.mask),
            "top_is_last": _mean((self.tokens[..., 0] == self.tokens[-1, ..., 0]), self.mask),
            "committed": np.array([float((committed <= at).double().mean()) for at in self.layers]),
            "target_log_prob": _mean(self.target_log_prob, self.target >= 0),
            "target_is_top": _mean(self.rank == 0, self.target >= 0),
            "n": np.full(len(self.layers), int(self.mask.sum())),
        }
        notes = (
            "top_is_last: share of places whose most likely token is already the last site's; "
            "committed: share where it stays so from here on",
            "low, high: 95 % interval of kl, drawing prompts again; NaN with fewer than two",
        )
        title = f"Lens: {len(self.layers)} sites, {int(self.mask.sum())} places"
        units = {name: unit for name, unit in NATS.items() if name in columns}
        return Table(columns, title, SOURCE, units, notes, self.provenance)

    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        if len(self.mask) < 2 or bool(self.kl[:, self.mask].isnan().any()):
            nothing = np.full(len(self.layers), np.nan)
            return nothing, nothing
        n = self.mask.sum(1).double()
        sums = torch.cat([self.kl.double().nansum(-1), n[None]]).T  # [batch, site + 1]
        return bootstrap(lambda drawn: drawn[:-1] / drawn[-1], sums.numpy())

    def _texts(self, tokens: np.ndarray) -> np.ndarray:
        return np.array([self.text(t) if t >= 0 else "" for t in tokens.tolist()], dtype=object)

    def to_pandas(self) -> pandas.DataFrame:
        """The table as a data frame."""
        return self.table().to_pandas()

    def __repr__(self) -> str:
        return repr(self.summary())

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()


def _mean(values: Tensor, mask: Tensor) -> np.ndarray:
    """Mean over the marked places of every site; NaN where none is marked."""
    return values[:, mask].double().mean(1).numpy()
