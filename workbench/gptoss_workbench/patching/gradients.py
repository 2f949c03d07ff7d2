"""Estimates of patching from gradients: one pass, or a few, for all cells.

    attribution patching   (clean - corrupted) · ∂metric/∂node, at the corrupted run
                           (Nanda 2023; Syed et al. 2310.10348; Kramár et al. 2403.00745)
    integrated gradients   (clean - corrupted) · mean of ∂metric/∂node over a path
                           (Sundararajan et al. 1703.01365)
        path="activation"  each layer's nodes of one site move together in a straight line; their
                           attributions sum to the effect of patching all of them
        path="input"       the embeddings move, nodes follow (Hanna et al. 2403.17806); cheaper, and
                           complete at the embedding only

In noising, clean and corrupted change places. Gradients hold each token's choice of experts fixed
and see the weights only: where a patch makes the router choose other experts the metric jumps, and
no estimate here sees the jump. `completeness` says how large that is on a path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gptoss_hooks.points import HookPoint
from gptoss_workbench.patching.copies import Copies
from gptoss_workbench.patching.metrics import Judge
from gptoss_workbench.patching.nodes import Cells, Wanted
from gptoss_workbench.patching.result import PatchResult
from gptoss_workbench.patching.study import Study, prepare
from gptoss_workbench.patching.sweep import TOKENS_AT_ONCE, groups
from gptoss_workbench.patching.values import Patch, patch, places_of
from gptoss_workbench.table import Table
from gptoss_workbench.text import Text

if TYPE_CHECKING:
    from gptoss_workbench.model import GptOss

FIXED = "gradients hold the choice of experts fixed: jumps of the router are not seen"
ATP = "(clean - corrupted) · gradient: attribution patching, Nanda 2023; Syed et al. 2310.10348"
IG = "integrated gradients, Sundararajan et al. 1703.01365; input path: Hanna et al. 2403.17806"


def attribution_patching(
    model: GptOss,
    clean: Text | Tensor,
    corrupted: Text | Tensor,
    *,
    metric: Judge,
    sites: Sequence[str] | str = ("resid_pre", "attn_out", "mlp_out"),
    positions: Any = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    slots: Sequence[int] | None = None,
    experts: Sequence[int] | None = None,
    neurons: Sequence[int] | None = None,
    cells: Cells | None = None,
    direction: str = "denoise",
) -> PatchResult:
    """Estimate every cell's patch from one gradient at the run that would be patched.

    Arguments are those of `activation_patching`; `value` is base metric + attribution.
    """
    wanted = Wanted(layers, positions, heads, slots, experts, neurons)
    study = prepare(
        model, clean, corrupted, metric, sites, wanted, cells=cells, direction=direction
    )
    patches = _patches(study)
    gradient = _gradients(model, study, _hooks(patches), None)
    value = _value(study, [_attributed(study, each, gradient[each[1].hook]) for each in patches])
    return study.result(
        model, value, method="attribution patching", source=ATP, notes=(FIXED,)
    )  # fmt: skip


def integrated_gradients(
    model: GptOss,
    clean: Text | Tensor,
    corrupted: Text | Tensor,
    *,
    metric: Judge,
    steps: int = 16,
    path: str = "activation",
    sites: Sequence[str] | str = ("resid_pre", "attn_out", "mlp_out"),
    positions: Any = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    slots: Sequence[int] | None = None,
    experts: Sequence[int] | None = None,
    neurons: Sequence[int] | None = None,
    cells: Cells | None = None,
    direction: str = "denoise",
    batch_tokens: int = TOKENS_AT_ONCE,
) -> PatchResult:
    """Estimate every cell's patch from gradients at the middles of `steps` pieces of a path.

    Args:
        path: "activation": the cells of one site and layer go together from their base values to
            the other run's; "input": the embeddings do, for all sites at once.

    Other arguments are those of `activation_patching`. `result.completeness` compares the sum of
    the attributions with what happens when everything on the path is patched.
    """
    if steps < 1 or path not in ("activation", "input"):
        raise ValueError(f"steps is 1 or more, path 'activation' or 'input'; got {steps}, {path!r}")
    wanted = Wanted(layers, positions, heads, slots, experts, neurons)
    study = prepare(
        model, clean, corrupted, metric, sites, wanted, cells=cells, direction=direction,
        more=("hook_embed",) if path == "input" else (),
    )  # fmt: skip
    along = _along_nodes if path == "activation" else _along_input
    value, sums = along(model, study, _middles(steps), batch_tokens)
    return study.result(
        model, value, method=f"integrated gradients ({path} path, {steps} steps)", source=IG,
        notes=(FIXED,), completeness=_completeness(sums),
    )  # fmt: skip


Group = tuple[np.ndarray, Patch]
"""Row numbers of the cells of one site and layer, and what they write."""


def _patches(study: Study) -> list[Group]:
    cells, runs = study.cells, (study.base, study.other)
    return [(g, patch(places_of(cells[g], *runs), 0, *runs)) for g in groups(cells)]


def _hooks(patches: list[Group]) -> list[str]:
    return list(dict.fromkeys(each.hook for _, each in patches))


def _middles(steps: int) -> Tensor:
    return (torch.arange(steps) + 0.5) / steps


def _gradients(
    model: GptOss, study: Study, names: list[str], embed: Tensor | None
) -> dict[str, Tensor]:
    """Gradient of the metric at every named hook, [copy x batch, ...].

    Args:
        embed: embeddings [copy x batch, pos, d_model] to run from; None is the base's own.
    """
    base, live = study.base, {}
    n = 1 if embed is None else len(embed) // len(base.tokens)

    def keep(tensor: Tensor, hook: HookPoint) -> None:
        live[hook.name] = tensor

    hooks = [("hook_embed", lambda tensor, hook: embed)] + [(name, keep) for name in names]
    with torch.enable_grad(), model.hooks(hooks):
        logits = model(
            base.tokens.repeat(n, 1),
            attention_mask=base.mask.repeat(n, 1),
            logits_to_keep=study.metric.keep,
        )
        total = study.metric(logits.unflatten(0, (n, -1))).sum()
    return dict(zip(names, _differentiate(total, [live[name] for name in names]), strict=True))


def _differentiate(total: Tensor, at: list[Tensor]) -> list[Tensor]:
    if not total.requires_grad:
        raise ValueError("metric: its value has no gradient; compute it from the logits in torch")
    found = torch.autograd.grad(total, at, allow_unused=True)
    return [torch.zeros_like(a) if g is None else g for a, g in zip(at, found, strict=True)]


def _attributed(study: Study, group: Group, gradient: Tensor) -> tuple[np.ndarray, Tensor]:
    """(row numbers, attribution [cell, batch]); NaN where a cell does not exist."""
    rows, each = group
    batch = len(study.base.tokens)
    moved = each.values.float() - each.base(study.base).float()
    part = (moved * gradient[each.at].float()).reshape(len(moved), -1).sum(1)
    out = torch.zeros(len(rows), batch, device=part.device)
    out.index_put_((each.places.cell, each.places.batch), part, accumulate=True)
    return rows, out.cpu().masked_fill(~each.exists(len(rows), batch), torch.nan)


def _value(study: Study, parts: list[tuple[np.ndarray, Tensor]]) -> Tensor:
    """Base metric + attribution, [cell, batch]; summed over a batch that is judged as one."""
    value = torch.empty(len(study.cells), len(study.base.value))
    for rows, part in parts:
        whole = part if part.shape[1] == value.shape[1] else part.nansum(1, keepdim=True)
        value[rows] = study.base.value.cpu() + whole
    return value


def _along_nodes(
    model: GptOss, study: Study, middles: Tensor, batch_tokens: int
) -> tuple[Tensor, list[tuple]]:
    """Values, and (site, layer, attributed, true) of every site and layer."""
    parts, sums = [], []
    copies = Copies(model, study.base)
    n = max(1, batch_tokens // study.base.tokens.numel())
    for rows, each in _patches(study):
        layer, site = int(study.cells.layer[rows[0]]), str(study.cells.site[rows[0]])
        gradient = torch.zeros_like(study.base.kept[each.hook], dtype=torch.float32)
        for alphas in middles.split(n):
            gradient += _along(copies, study, layer, each, alphas)[0].float().sum(0)
        end = _along(copies, study, layer, each, torch.ones(1))[1]
        parts.append(_attributed(study, (rows, each), gradient / len(middles)))
        true = (end - study.base.value).sum()
        sums.append((site, layer, float(parts[-1][1].nansum()), float(true)))
    return _value(study, parts), sums


def _along(
    copies: Copies, study: Study, layer: int, each: Patch, alphas: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients [step, batch, ...] at points of the line, and the metric at the last one."""
    base = study.base.kept[each.hook]
    moved = torch.zeros_like(base, dtype=torch.float32)
    moved.index_put_(each.at, each.values.float() - each.base(study.base).float(), accumulate=True)
    alpha = alphas.to(base.device).view(-1, *[1] * base.ndim)
    line = (base.float() + alpha * moved).to(base.dtype).flatten(0, 1).requires_grad_()
    with torch.enable_grad():
        x = copies.fresh(layer, len(alphas))
        x = copies.through(layer, x, [(each.hook, lambda tensor, hook: line)])
        for later in range(layer + 1, copies.model.n_layers):
            x = copies.through(later, x)
        value = copies.judge(x, study.metric)
    (gradient,) = _differentiate(value.sum(), [line])
    return gradient.unflatten(0, (len(alphas), -1)), value[-1].detach()


def _along_input(
    model: GptOss, study: Study, middles: Tensor, batch_tokens: int
) -> tuple[Tensor, list[tuple]]:
    """Values for all sites from one path of the embeddings, and its completeness."""
    start, end = (run.kept["hook_embed"] for run in (study.base, study.other))
    if start.shape != end.shape:
        raise ValueError("path='input' needs prompts of the same length; use path='activation'")
    patches, total = _patches(study), {}
    n = max(1, batch_tokens // study.base.tokens.numel())
    for alphas in middles.split(n):
        alpha = alphas.to(start.device).view(-1, 1, 1, 1)
        line = (start + alpha * (end - start)).flatten(0, 1).requires_grad_()
        found = _gradients(model, study, [*_hooks(patches), "hook_embed"], line)
        for name, gradient in found.items():
            summed = gradient.float().unflatten(0, (len(alphas), -1)).sum(0)
            total[name] = total.get(name, 0) + summed / len(middles)
    value = _value(study, [_attributed(study, each, total[each[1].hook]) for each in patches])
    attributed = float(((end - start).float() * total["hook_embed"]).sum())
    true = float((study.other.value - study.base.value).sum())
    return value, [("embed", 0, attributed, true)]


def _completeness(sums: list[tuple]) -> Table:
    site, layer, attributed, true = (np.array(column) for column in zip(*sums, strict=True))
    gap = attributed - true
    columns = {"site": site, "layer": layer, "attributed": attributed, "true": true, "gap": gap}
    return Table(
        columns,
        "Sum of attributions beside the effect of patching all of it (summed over examples)",
        "completeness, Sundararajan et al. 1703.01365",
        notes=("the gap is the path's discretisation and the router's jumps",),
    )
