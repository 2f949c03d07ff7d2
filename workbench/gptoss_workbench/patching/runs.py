"""The two runs a patch goes between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gptoss_workbench.patching.metrics import Metric
from gptoss_workbench.patching.nodes import OF_EXPERTS, Cells, Sides
from gptoss_workbench.text import Batch, Text

if TYPE_CHECKING:
    from gptoss_workbench.model import GptOss


class Run(NamedTuple):
    """One plain run of a batch of prompts."""

    tokens: Tensor
    """[batch, pos]"""
    mask: Tensor
    """[batch, pos]"""
    kept: dict[str, Tensor]
    """hook name: activation"""
    value: Tensor
    """[batch] what the metric says of it"""

    @property
    def width(self) -> int:
        """Length of the longest prompt."""
        return self.tokens.shape[1]


def read_pair(
    model: GptOss, clean: Text | Tensor, corrupted: Text | Tensor, *, same_length: bool = True
) -> tuple[Batch, Batch]:
    """Both prompts (or batches of them, padded on the left), checked to fit each other."""
    one, other = (model.read(each, padding_side="left") for each in (clean, corrupted))
    if len(one.tokens) != len(other.tokens):
        raise ValueError(
            f"clean has {len(one.tokens)} prompts and corrupted {len(other.tokens)}: give as many"
        )
    lengths = [batch.mask.sum(1).tolist() for batch in (one, other)]
    differ = [i for i, (a, b) in enumerate(zip(*lengths, strict=True)) if a != b]
    if same_length and differ:
        raise ValueError(_mismatch(model, one, other, differ[0]))
    return one, other


def sides_of(batches: Sequence[Batch]) -> Sides:
    """How long the clean and the corrupted prompts are."""
    lengths = [batch.mask.sum(1).tolist() for batch in batches]
    (a, b), (c, d) = ((max(each), min(each)) for each in lengths)
    return Sides((a, c), (b, d))


def _mismatch(model: GptOss, one: Batch, other: Batch, row: int) -> str:
    """Say which spans make two prompts differ in length."""
    a, b = (batch.tokens[row][batch.mask[row]].tolist() for batch in (one, other))
    front = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
    front = min(len(a), len(b)) if front is None else front
    back = 0
    while back < min(len(a), len(b)) - front and a[-1 - back] == b[-1 - back]:
        back += 1
    spans = [_span(model, tokens, front, len(tokens) - back) for tokens in (a, b)]
    return (
        f"clean and corrupted must have the same number of tokens, or positions= as pairs "
        f"(clean place, corrupted place); pair {row} has {len(a)} and {len(b)}. They differ in "
        f"clean: {spans[0]}; corrupted: {spans[1]}."
    )


def _span(model: GptOss, tokens: list[int], start: int, stop: int) -> str:
    span = tokens[start:stop]
    if not span:
        return f"nothing before position {start}"
    shown = span if model.tokenizer is None else "".join(model.tokenizer.strings(span))
    place = f"position {start}" if len(span) == 1 else f"positions {start} to {stop - 1}"
    return f"{place} ({shown!r})"


@torch.no_grad()
def run(model: GptOss, batch: Batch, metric: Metric, names: Sequence[str] = ()) -> Run:
    """Run a batch once; keep the named activations and what the metric says."""
    logits, kept = model.run_with_cache(
        batch.tokens,
        attention_mask=batch.mask,
        names_filter=set(names).__contains__,
        logits_to_keep=metric.keep,
        return_cache_object=False,
    )
    return Run(batch.tokens, batch.mask, dict(kept.items()), metric(logits))


@torch.no_grad()
def run_both(
    model: GptOss, batches: Sequence[Batch], metric: Metric, names: Sequence[str]
) -> list[Run]:
    """Run two batches of one shape as one; keep the named activations of both."""
    n = len(batches[0].tokens)
    logits, kept = model.run_with_cache(
        torch.cat([batch.tokens for batch in batches]),
        attention_mask=torch.cat([batch.mask for batch in batches]),
        names_filter=set(names).__contains__,
        logits_to_keep=metric.keep,
        return_cache_object=False,
    )
    values = metric(logits.unflatten(0, (2, n)))
    halves = [{name: tensor[at : at + n] for name, tensor in kept.items()} for at in (0, n)]
    return [
        Run(*batch, half, value) for batch, half, value in zip(batches, halves, values, strict=True)
    ]


def check_scores(clean: Run, corrupted: Run, metric: Metric) -> None:
    """Raise where the metric has nothing to tell the two runs apart by."""
    for name, one in (("clean", clean), ("corrupted", corrupted)):
        if wrong := (~one.value.isfinite()).nonzero().flatten().tolist():
            raise ValueError(
                f"metric: {metric.name} is {float(one.value[wrong[0]])} on {name} prompt {wrong[0]}"
            )
    if torch.equal(clean.value, corrupted.value):
        raise ValueError(
            f"clean and corrupted score the same ({metric.name} {float(clean.value[0]):.4g}): "
            "nothing to restore. Give prompts that the metric tells apart."
        )


def observed(model: GptOss) -> bool:
    """Whether hooks of the caller look on, which expect whole prompts and every layer."""
    return any(point.observed for point in model.hook_dict.values())


def stream_names(n_layers: int, cells: Cells) -> list[str]:
    """Hook points that copies of a run are continued from."""
    parts = ("hook_resid_pre", "attn.hook_rot_k", "attn.hook_v")
    names = [f"blocks.{i}.{part}" for i in range(cells.layer.min(), n_layers) for part in parts]
    mixed = set(cells.layer[np.isin(cells.site, OF_EXPERTS)].tolist())
    mids = [f"blocks.{layer}.hook_resid_mid" for layer in sorted(mixed)]
    return [*names, *mids, f"blocks.{n_layers - 1}.hook_resid_post"]


def first_needed(metric: Metric, width: int) -> int:
    """The first position whose logits a metric reads."""
    return width - metric.keep if metric.keep else 0


def parting(one: Run, other: Run) -> int:
    """The first position at which two runs may differ, attention being causal."""
    if one.width != other.width:
        return 0
    differ = ((one.tokens != other.tokens) | (one.mask != other.mask)).any(0)
    return int(differ.long().argmax()) if bool(differ.any()) else one.width
