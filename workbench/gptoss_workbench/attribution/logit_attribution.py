"""Direct logit attribution: which parts of the model wrote a logit.

    x     = embed + sum over layers of (sum over heads z W_O + b_O + sum over slots weight out)
    logit = (x / scale * w_norm) @ W_U[token]          scale frozen at its value in this run
    part  = (part's write / scale * w_norm) @ W_U[token]

so the parts sum to the logit. Nothing is folded: b_V stays inside the heads, where sinks make a
pattern row sum to less than one and b_V is therefore no constant, and an expert's b2 stays inside
its slot. The sink writes nothing. (Direct paths of Elhage et al. 2021, "A mathematical framework
for transformer circuits".)

Every write is multiplied with its direction where it is made, so no [pos, head, d_model] is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gptoss_hooks import axes
from gptoss_hooks.points import HookPoint
from gptoss_workbench.attribution.attribution_result import LogitAttribution
from gptoss_workbench.lens.places import (
    Positions,
    as_tokens,
    batches,
    blank,
    find_places,
    read_prompts,
    token_strings,
)
from gptoss_workbench.lens.readout import final_norm, readout
from gptoss_workbench.lens.residuals import residuals
from gptoss_workbench.provenance import provenance
from gptoss_workbench.text import Batch

Taker = Callable[[Tensor, HookPoint], None]


def logit_attribution(
    model: Any,
    input: Any,
    target: str | int | Tensor | Sequence[int] | None = None,
    *,
    against: str | int | Tensor | Sequence[int] | None = None,
    positions: Positions = -1,
    attention_mask: Tensor | None = None,
    batch: int = 8,
) -> LogitAttribution:
    """Split a logit, or a difference of two, into what embedding, heads and expert slots wrote.

        parts = logit_attribution(model, "6 * 7 =", " 42", against=" 43")
        parts.table("head"), parts.residue

    Args:
        input: text, texts, tokens [batch, pos] or lists of tokens.
        target: token whose logit is split; one, or a tensor that broadcasts to the places
            [batch, pos]. None is the model's own first choice at each place.
        against: token whose logit is taken away.
        positions: of each row's real tokens, -1 being the last.
        batch: prompts run at a time.
    """
    prompts = read_prompts(model, input, attention_mask)
    places = find_places(prompts.mask, positions)
    wanted = None if target is None else as_tokens(model, target, places)
    other = torch.full_like(places, -1)
    if against is not None:
        other = as_tokens(model, against, places)
    filled: dict[str, Tensor] = {}
    for rows, columns, part in batches(prompts, batch):
        row, pos = (places[rows] >= 0).nonzero(as_tuple=True)
        at = (row, places[rows][row, pos] - columns.start)
        tokens = _first_choice(model, part, at) if wanted is None else wanted[rows][row, pos]
        found = _split(model, part, at, tokens, other[rows][row, pos])
        filled = filled or {name: _empty(each, places.shape) for name, each in found.items()}
        for name, each in found.items():
            layers = () if each.ndim == 1 else (slice(None),)
            filled[name][(*layers, row.cpu() + rows.start, pos.cpu())] = each.cpu()
    return LogitAttribution(
        **filled,
        against=other.cpu(),
        places=places.cpu(),
        strings=token_strings(model, filled["target"], other),
        provenance=provenance(model, prompts.tokens.cpu(), prompts.mask.cpu()),
    )


def _first_choice(model: Any, part: Batch, at: tuple[Tensor, Tensor]) -> Tensor:
    name = f"blocks.{model.n_layers - 1}.hook_resid_post"
    final = residuals(model, part, [name], *at)[name]
    return readout(model, final[None], k=1).tokens[0, :, 0]


def _split(
    model: Any, part: Batch, at: tuple[Tensor, Tensor], target: Tensor, against: Tensor
) -> dict[str, Tensor]:
    """All parts of each place's logit, [row] or [layer, row, ...]."""
    unembed = model.unembed.weight
    direction = unembed[target].float()
    direction -= (
        torch.where(against >= 0, 1.0, 0.0)[:, None] * unembed[against.clamp_min(0)].float()
    )
    written = _Written(model, direction * model.ln_final.weight.float())
    takers = written.takers()

    def look(tensor: Tensor, hook: HookPoint) -> None:
        takers[hook.name](tensor[at], hook)

    with torch.no_grad(), model.recording(list(takers), look):
        model(
            part.tokens,
            attention_mask=part.mask,
            return_type=None,
            stop_at_layer=model.n_layers,
        )
    final = written.final
    scale = (final.float().square().mean(-1) + model.ln_final.eps).sqrt()
    logit = (final_norm(model, final[None])[0].float() * direction).sum(-1)
    parts = {
        "embed": written.embed,
        "heads": torch.stack(written.heads),
        "biases": torch.stack(written.biases),
        "slots": torch.stack(written.slots),
    }
    out = {name: each / _along(scale, each) for name, each in parts.items()}
    return out | {"experts": torch.stack(written.experts), "logit": logit, "target": target}


class _Written:
    """The dot product of every write with its place's direction, before the norm's scale."""

    def __init__(self, model: Any, direction: Tensor):
        self.model, self.direction = model, direction
        self.embed = self.final = direction.new_empty(0)
        self.heads: list[Tensor] = []
        self.biases: list[Tensor] = []
        self.slots: list[Tensor] = []
        self.experts: list[Tensor] = []
        self.weights = direction.new_empty(0)

    def takers(self) -> dict[str, Taker]:
        """What takes in each hook point's activation at the places asked for."""
        n_layers = self.model.n_layers
        out: dict[str, Taker] = {
            "hook_embed": self._embed,
            f"blocks.{n_layers - 1}.hook_resid_post": self._final,
        }
        for i in range(n_layers):
            out[f"blocks.{i}.attn.hook_z"] = self._heads
            out[f"blocks.{i}.mlp.hook_expert_indices"] = self._indices
            out[f"blocks.{i}.mlp.hook_expert_weights"] = self._weights
            out[f"blocks.{i}.mlp.hook_expert_out"] = self._slots
        return out

    def _embed(self, x: Tensor, hook: HookPoint) -> None:
        self.embed = (x.float() * self.direction).sum(-1)

    def _heads(self, z: Tensor, hook: HookPoint) -> None:
        """z W_O is never formed: the direction is pulled back through W_O instead."""
        proj = self.model.blocks[axes.layer_of(hook.name) or 0].attn.o_proj
        pulled = (self.direction @ proj.weight.float()).view(z.shape)  # [row, head, d_head]
        self.heads.append((z.float() * pulled).sum(-1))
        self.biases.append(self.direction @ proj.bias.float())

    def _indices(self, experts: Tensor, hook: HookPoint) -> None:
        self.experts.append(experts)

    def _weights(self, weights: Tensor, hook: HookPoint) -> None:
        self.weights = weights.float()

    def _slots(self, out: Tensor, hook: HookPoint) -> None:
        self.slots.append((out.float() @ self.direction[:, :, None])[..., 0] * self.weights)

    def _final(self, x: Tensor, hook: HookPoint) -> None:
        self.final = x


def _along(scale: Tensor, part: Tensor) -> Tensor:
    """A value a row, shaped to divide [row], [layer, row] or [layer, row, ...]."""
    return scale if part.ndim == 1 else scale.view(1, -1, *(1,) * (part.ndim - 2))


def _empty(like: Tensor, shape: torch.Size) -> Tensor:
    return blank(like[None], 1, shape)[0] if like.ndim == 1 else blank(like, len(like), shape)
