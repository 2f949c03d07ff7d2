"""What a single expert says about the next token, and how far the best one speaks for the mix.

    lens          W_U (f_e(x) / s · w_final)      f_e: unweighted output, s: the token's own final
                                                  norm denominator, w_final: the final norm's weight
    contribution  g_e · that logit                what the expert adds to the token's logit directly
    cosine        cos(f_rank(x), Σ_j g_j f_j(x))  the output of each rank against the full mix

Source: MoE Lens (arXiv 2603.05806): lens on one expert, cosine of the top expert with the mix,
loss with the top expert alone. With the same s for all experts of a token their contributions add
up to the mix's. Only the best few tokens of the vocabulary are kept; it is walked in tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gptoss_hooks.edits import set_k
from gptoss_hooks.points import HookPoint
from gptoss_workbench.intervals import bootstrap
from gptoss_workbench.lens import readout
from gptoss_workbench.lens.places import choose_layers
from gptoss_workbench.routing.scored_loss import scored_loss, scored_places
from gptoss_workbench.table import Table

PAPER = "MoE Lens (arXiv 2603.05806)"
POINTS = ("hook_expert_indices", "hook_expert_weights", "hook_expert_out")


def expert_lens(
    model: Any,
    tokens: Any,
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    top: int = 5,
) -> Table:
    """The tokens that each chosen expert's output raises most, for every layer and place.

        expert_lens(model, "Given A is 3.", layers=[2]).where(pos=4, rank=0)

    Args:
        tokens: text or tokens [batch, pos].
        positions: places to read; None is all. Padding is left out.

    Columns: layer, prompt, pos, rank (0: largest weight), expert, weight (over the kept k), place
    (0: the token raised most), token, string, logit (of the output alone), contribution.
    """
    batch = model.read(tokens)
    keep = _Read(model, _real(batch.mask, positions), top)
    with torch.no_grad(), model.recording(_names(choose_layers(model.n_layers, layers)), keep):
        last = model(batch.tokens, attention_mask=batch.mask, stop_at_layer=model.n_layers)
    return Table(
        keep.columns(last),
        "tokens that single experts raise",
        f"W_U (f / s · w_final), s: the final norm's own denominator ({PAPER})",
        {"logit": "logits", "contribution": "logits"},
        ["contribution = weight · logit: the expert's direct part of that token's logit"],
        {"model": model.name, "fingerprint": model.fingerprint},
    )


def expert_mix_cosine(model: Any, tokens: Any, *, layers: Sequence[int] | None = None) -> Table:
    """Cosine of each rank's output with the weighted sum of all k, a layer and rank a row.

    Columns: cosine with its 95 % interval (bootstrap over prompts), other: the same rank's output
    at another token (what the layer's mean direction alone gives), weight (mean), n (tokens).
    """
    batch = model.read(tokens)
    chosen = choose_layers(model.n_layers, layers)
    keep = _Cosines(batch.mask)
    with torch.no_grad(), model.recording(_names(chosen), keep):
        model(batch.tokens, attention_mask=batch.mask, return_type=None)
    sums = np.stack(keep.sums, 1)  # [prompt, layer, k, 4]: cosine, other, weight, count
    total = sums.sum(0)
    low, high = bootstrap(lambda s: s[..., 0] / np.maximum(s[..., 3], 1), sums)
    k = total.shape[1]
    mean = total[..., :3] / np.maximum(total[..., 3:], 1)
    columns = {
        "layer": np.repeat(chosen, k), "rank": np.tile(np.arange(k), len(chosen)),
        "cosine": mean[..., 0].ravel(), "low": low.ravel(), "high": high.ravel(),
        "other": mean[..., 1].ravel(), "weight": mean[..., 2].ravel(),
        "n": total[..., 3].ravel().astype(int),
    }  # fmt: skip
    return Table(
        columns,
        "cosine of one expert's output with the full mix",
        f"cos(f_rank, Σ g f) ({PAPER})",
        {},
        ["other: the same rank's output at another token; a single expert has cosine 1"],
        {"model": model.name, "fingerprint": model.fingerprint},
    )


def loss_by_k(
    model: Any,
    tokens: Any,
    *,
    ks: Sequence[int] = (1, 2, 4),
    voices: Sequence[str] | None = None,
) -> Table:
    """Loss when every token keeps only its k best experts, weights renormalised (`set_k`).

    Args:
        voices: whose tokens the loss is of, say ("analysis", "final"); None is all.

    Columns: k, loss (nats a token), rise (over the model's own k), perplexity.
    """
    own, batch = model.config.num_experts_per_tok, model.read(tokens)
    places = scored_places(model, batch, voices)
    base = scored_loss(model, batch, places)
    loss = np.array([scored_loss(model, batch, places, edits=[set_k(k)]) for k in ks])
    return Table(
        {"k": np.array(ks), "loss": loss, "rise": loss - base, "perplexity": np.exp(loss)},
        "loss with fewer experts a token",
        f"loss with the top k experts alone ({PAPER})",
        {"loss": "nats", "rise": "nats"},
        [f"the model's own k is {own}: loss {base:.4g}"],
        {"model": model.name, "fingerprint": model.fingerprint, "k": own},
    )


def _names(layers: Sequence[int]) -> list[str]:
    return [f"blocks.{layer}.mlp.{point}" for layer in layers for point in POINTS]


def _real(mask: Tensor, positions: Sequence[int] | None) -> Tensor:
    """[row] flat indices of the places to read."""
    wanted = torch.zeros_like(mask)
    wanted[:, slice(None) if positions is None else list(positions)] = True
    found = (mask & wanted).flatten().nonzero()[:, 0]
    if not len(found):
        raise ValueError(f"expert_lens: no real token at positions {positions}")
    return found


class _Read:
    """Reads every expert output as it passes, and keeps the top tokens."""

    def __init__(self, model: Any, rows: Tensor, top: int):
        self.model, self.rows, self.top = model, rows, top
        self.experts = self.weights = torch.empty(0)
        self.layers: list[int] = []
        self.parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def __call__(self, tensor: Tensor, hook: HookPoint) -> None:
        here = tensor.flatten(0, 1)[self.rows]
        if hook.name.endswith("indices"):
            self.experts = here
        elif hook.name.endswith("weights"):
            self.weights = here
        else:
            self._read(int(hook.name.split(".")[1]), here.float())

    def _read(self, layer: int, out: Tensor) -> None:
        """`out` is [row, k, d_model]; the readout divides by the output's own size, undone here."""
        seen = readout(self.model, out.flatten(0, 1)[None], k=self.top)
        own = (out.square().mean(-1) + self.model.config.rms_norm_eps).sqrt()  # [row, k]
        logits = (seen.log_probs + seen.log_sum_exp[..., None])[0].unflatten(0, own.shape)
        best = seen.tokens[0].unflatten(0, own.shape)  # [row, k, top]
        self.layers.append(layer)
        self.parts.append((self.experts, self.weights, best, logits * own[..., None]))

    def columns(self, last: Float[Tensor, "batch pos d_model"]) -> dict[str, np.ndarray]:
        """The table's columns, once the last residual is known."""
        experts, weights, best, logits = (
            torch.stack(each) for each in zip(*self.parts, strict=True)
        )  # [layer, row, k] and [layer, row, k, top]
        final = last.flatten(0, 1)[self.rows].float()
        scale = (final.square().mean(-1) + self.model.config.rms_norm_eps).sqrt()
        logits = logits / scale[:, None, None]
        layer, row, rank, place = np.indices(tuple(best.shape))
        flat = self.rows.cpu().numpy()[row]
        grids = {
            "layer": np.array(self.layers)[layer],
            "prompt": flat // last.shape[1], "pos": flat % last.shape[1], "rank": rank,
            "expert": experts[..., None].expand_as(best).cpu().numpy(),
            "weight": weights[..., None].expand_as(best).cpu().numpy(),
            "place": place, "token": best.cpu().numpy(),
            "logit": logits.cpu().numpy(),
            "contribution": (logits * weights[..., None]).cpu().numpy(),
        }  # fmt: skip
        columns = {name: grid.ravel() for name, grid in grids.items()}
        return columns | self._strings(columns["token"])

    def _strings(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        if self.model.tokenizer is None:
            return {}
        known, row = np.unique(tokens, return_inverse=True)
        texts = np.array(self.model.tokenizer.strings(known.tolist()), dtype=object)
        return {"string": texts[row]}


class _Cosines:
    """Sums a layer's cosines for each prompt."""

    def __init__(self, mask: Tensor):
        self.mask, self.weights = mask, torch.empty(0)
        self.sums: list[np.ndarray] = []

    def __call__(self, tensor: Tensor, hook: HookPoint) -> None:
        if hook.name.endswith("weights"):
            self.weights = tensor.float()
        elif hook.name.endswith("out"):
            out = tensor.float()
            mix = (out * self.weights[..., None]).sum(2, keepdim=True)  # [batch, pos, 1, d_model]
            other = out.flatten(0, 1).roll(1, 0).view_as(out)
            values = [torch.cosine_similarity(each, mix, -1) for each in (out, other)]
            table = torch.stack([*values, self.weights, torch.ones_like(values[0])], -1)
            self.sums.append((table * self.mask[..., None, None]).sum(1).double().cpu().numpy())
