"""The logit lens: what the residual stream would predict if the model stopped at a layer.

    lens(x) = softmax(W_U norm_final(x))          nostalgebraist 2020; a tuned lens puts an affine
                                                  map before the norm (Belrose et al., 2303.08112)

The final norm takes its scale from the residual it is given. The distance of a layer from the end
is KL(final || layer), and a place is committed from the first layer on after which the most likely
token no longer changes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gptoss_workbench.lens.lens_result import LensResult
from gptoss_workbench.lens.places import (
    Positions,
    as_tokens,
    batches,
    blank,
    choose_layers,
    find_places,
    next_tokens,
    read_prompts,
    token_strings,
)
from gptoss_workbench.lens.readout import Readout, readout
from gptoss_workbench.lens.residuals import in_groups
from gptoss_workbench.lens.tuned_lens import TunedLens
from gptoss_workbench.provenance import provenance
from gptoss_workbench.text import Batch
from gptoss_workbench.trace import Trace

SITES = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
"""Where a block can be read, in firing order."""


def logit_lens(
    model: Any,
    input: Any,
    *,
    attention_mask: Tensor | None = None,
    positions: Positions = None,
    layers: int | Sequence[int] | None = None,
    sites: str | Sequence[str] = ("resid_post",),
    k: int = 5,
    target: str | int | Tensor | None = None,
    kl: bool = True,
    lens: TunedLens | None = None,
    batch: int = 8,
) -> LensResult:
    """Read every layer's residual as a prediction of the next token.

        seen = logit_lens(model, "6 * 7 =")
        seen.commitment(), seen.summary(), seen.to_pandas()

    Args:
        input: text, texts, tokens [batch, pos], lists of tokens, or a Trace that kept the sites.
        positions: of each row's real tokens, -1 being the last; None is all of them.
        sites: of SITES; attn_out and mlp_out are read alone, each with a norm of its own.
        k: most likely tokens kept at every place.
        target: token whose rank is followed; one, or a tensor that broadcasts to the places
            [batch, pos]. By default the token that comes next.
        kl: compare with the final residual, in nats.
        lens: a tuned lens to look through; it reads resid_post.
        batch: prompts run at a time.
    """
    names = _names(model, layers, sites, lens)
    traced = isinstance(input, Trace)
    if traced and attention_mask is not None:
        raise ValueError("logit_lens: a Trace has its own mask; leave attention_mask= out")
    prompts = (
        Batch(input.tokens, input.mask) if traced else read_prompts(model, input, attention_mask)
    )
    places = find_places(prompts.mask, positions)
    targets = _targets(model, input, prompts, places, target)
    states = (
        _from_trace(input, names, places, kl)
        if traced
        else _from_model(model, prompts, names, places, batch)
    )
    filled: list[Tensor] = []
    for first, (rows, at), stack, final in states:
        stack = stack.to(model.unembed.weight.device)  # a trace is on the CPU
        stack = stack if lens is None else _through(lens, names[first:], stack)
        part = readout(model, stack, k=k, targets=targets[rows, at], final=final if kl else None)
        filled = filled or [blank(piece, len(names), places.shape) for piece in part]
        for whole, piece in zip(filled, part, strict=True):
            whole[first : first + len(piece), rows, at] = piece.cpu()
    tokens = torch.where(places >= 0, prompts.tokens.gather(1, places.clamp_min(0)), -1).cpu()
    found = Readout(*filled)
    return LensResult(
        **found._asdict(),
        layers=tuple(int(name.split(".")[1]) for name in names),
        sites=tuple(name.split("hook_")[1] for name in names),
        prompt=tokens,
        target=targets.cpu(),
        places=places.cpu(),
        strings=token_strings(model, found.tokens, tokens, targets),
        provenance=provenance(model, prompts.tokens.cpu(), prompts.mask.cpu())
        | {"lens": "logit lens" if lens is None else repr(lens)},
    )


def _names(
    model: Any, layers: int | Sequence[int] | None, sites: str | Sequence[str], lens: Any
) -> list[str]:
    """Hook points to read, in firing order."""
    wanted = [sites] if isinstance(sites, str) else list(sites)
    if not wanted or set(wanted) - set(SITES):
        full = re.fullmatch(r"blocks\.(\d+)\.hook_(\w+)", str(wanted[0])) if wanted else None
        short = f"; that is sites={full[2]!r}, layers=[{full[1]}]" if full else ""
        raise ValueError(f"logit_lens: sites are {', '.join(SITES)}; got {wanted}{short}")
    if lens is not None and wanted != ["resid_post"]:
        raise ValueError(f"logit_lens: a tuned lens reads resid_post only; got sites {wanted}")
    return [
        f"blocks.{layer}.hook_{site}"
        for layer in choose_layers(model.n_layers, layers)
        for site in SITES
        if site in wanted
    ]


States = Iterator[tuple[int, tuple[Tensor, Tensor], Tensor, Tensor | None]]
"""(number of the first name, (row, pos) of the result, residuals, final residuals)"""


def _from_model(model: Any, prompts: Batch, names: list[str], places: Tensor, batch: int) -> States:
    for rows, columns, part in batches(prompts, batch):
        at = places[rows] - columns.start
        row, pos = (places[rows] >= 0).nonzero(as_tuple=True)
        for first, stack, final in in_groups(model, part, names, row, at[row, pos]):
            yield first, (row.cpu() + rows.start, pos.cpu()), stack, final


def _from_trace(trace: Trace, names: list[str], places: Tensor, kl: bool) -> States:
    last = f"blocks.{trace.config['num_hidden_layers'] - 1}.hook_resid_post"
    needed = [*names, last] if kl else names
    if missing := [name for name in needed if name not in trace.activations]:
        raise ValueError(
            f"logit_lens: this trace did not keep {', '.join(missing)}; trace with "
            'names_filter=["resid_post"], name the layers= it has, or leave KL out with kl=False'
        )
    row, pos = (places >= 0).nonzero(as_tuple=True)
    at = (row, places[row, pos])
    stack = torch.stack([trace.activations[name][at] for name in names])
    yield 0, (row, pos), stack, trace.activations[last][at] if kl else None


def _through(lens: TunedLens, names: list[str], stack: Tensor) -> Tensor:
    layers = [int(name.split(".")[1]) for name in names[: len(stack)]]
    return torch.stack([lens(layer, x) for layer, x in zip(layers, stack, strict=True)])


def _targets(
    model: Any, input: Any, prompts: Batch, places: Tensor, target: str | int | Tensor | None
) -> Tensor:
    """The target of every place; -1 for none."""
    if target is None:
        whole = Batch(*input.whole[:2]) if isinstance(input, Trace) else prompts
        first = input.places[0] if isinstance(input, Trace) else 0
        found = next_tokens(whole).gather(1, (places + first).clamp_min(0))
    else:
        found = as_tokens(model, target, places)
    return torch.where(places >= 0, found, -1)
