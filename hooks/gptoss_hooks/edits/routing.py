"""Edits of the router's decision: which experts a token takes, and with what weight.

    model(prompt, edits=[ban([3, 7], layers=12), zero(5, channels="analysis")])

Each changes one of three things: the logits (ban, swap, bias, steer_experts), the choice (set_k,
force, replay) or the weights (zero, route_around). The choice follows the logits and the weights
follow the choice; edits of the same thing act in list order. So no later edit undoes an earlier
one: an expert that is forced stays chosen when a bias re-routes the token. Hook functions at
`hook_router_logits`, `hook_expert_indices` and `hook_expert_weights` act after the edits of the
same thing. The formulas are in `gptoss_kernels.route_edited`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from gptoss_hooks.edits.edit import Edit, Many, Places, Voices, numbers, places, scoped, voices
from gptoss_hooks.points import EditError


class TieWarning(UserWarning):
    """More experts are promoted in a layer than a token takes: the lowest numbers win."""


@dataclass(frozen=True, repr=False, eq=False)
class RoutingEdit(Edit):
    """An edit of the router's decision."""


@dataclass(frozen=True, repr=False, eq=False)
class ExpertsEdit(RoutingEdit):
    """A routing edit that names experts; None is all of them."""

    experts: tuple[int, ...] | None = None


@dataclass(frozen=True, repr=False, eq=False)
class Ban(ExpertsEdit):
    """See `ban`."""

    verb: ClassVar[str] = "ban"


@dataclass(frozen=True, repr=False, eq=False)
class Zero(ExpertsEdit):
    """See `zero`."""

    verb: ClassVar[str] = "zero"


@dataclass(frozen=True, repr=False, eq=False)
class RouteAround(ExpertsEdit):
    """See `route_around`."""

    verb: ClassVar[str] = "route_around"


@dataclass(frozen=True, repr=False, eq=False)
class Force(ExpertsEdit):
    """See `force`."""

    verb: ClassVar[str] = "force"


@dataclass(frozen=True, repr=False, eq=False)
class Bias(ExpertsEdit):
    """See `bias`."""

    verb: ClassVar[str] = "bias"
    value: float = 0.0
    """nats"""


@dataclass(frozen=True, repr=False, eq=False)
class Swap(RoutingEdit):
    """See `swap`."""

    verb: ClassVar[str] = "swap"
    experts: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, repr=False, eq=False)
class SetK(RoutingEdit):
    """See `set_k`."""

    verb: ClassVar[str] = "set_k"
    k: int = 0


@dataclass(frozen=True, repr=False, eq=False)
class Replay(RoutingEdit):
    """See `replay`."""

    verb: ClassVar[str] = "replay"
    source: Mapping[str, Tensor] = field(default_factory=dict)
    """experts [layer batch pos k], with weights where asked for, tokens and mask of a trace"""
    weights: bool = False


@dataclass(frozen=True, repr=False, eq=False)
class SteerExperts(RoutingEdit):
    """See `steer_experts`."""

    verb: ClassVar[str] = "steer_experts"
    promote: tuple[Any, ...] = ()
    suppress: tuple[Any, ...] = ()


@scoped
def ban(
    experts: Many, *, layers: Many = None, tokens: Places = None, channels: Voices = None
) -> Ban:
    """Experts that may not be chosen: their logits are -inf and the runners-up take the slots.

    Weights are the softmax over the new k and sum to 1. Raises EditError, before anything runs,
    where fewer experts than a token takes are left.
    """
    return _on_experts(Ban, experts, layers, tokens, channels)


@scoped
def zero(
    experts: Many, *, layers: Many = None, tokens: Places = None, channels: Voices = None
) -> Zero:
    """Experts whose contribution is taken away: the choice stays, their weights are 0.

    Nothing is renormalised: weights sum to 1 less the weight that was removed.
    """
    return _on_experts(Zero, experts, layers, tokens, channels)


@scoped
def route_around(
    experts: Many, *, layers: Many = None, tokens: Places = None, channels: Voices = None
) -> RouteAround:
    """Experts whose contribution the others take over: the choice stays, their weights are 0.

    What is left is divided by its sum, so weights sum to 1; to 0 for a token all of whose experts
    were removed.
    """
    return _on_experts(RouteAround, experts, layers, tokens, channels)


@scoped
def force(
    experts: Many, *, layers: Many = None, tokens: Places = None, channels: Voices = None
) -> Force:
    """Experts that are always among a token's k; they displace the lowest ranked others.

    Ranked by logit; weights are the softmax of the logits over the new choice and sum to 1. Raises
    EditError where more are forced than a token takes, or one that is banned.
    """
    return _on_experts(Force, experts, layers, tokens, channels)


@scoped
def bias(
    experts: Many,
    value: float,
    *,
    layers: Many = None,
    tokens: Places = None,
    channels: Voices = None,
) -> Bias:
    """Add `value` nats to the experts' router logits; weights sum to 1."""
    if isinstance(value, bool) or not math.isfinite(value):
        raise EditError(f"bias: value= is a finite number of nats; got {value!r}; see ban")
    return Bias(*_where("bias", layers, tokens, channels), numbers(experts, "experts", "bias"),
                float(value))  # fmt: skip


@scoped
def swap(
    experts: Sequence[int] | Sequence[Sequence[int]],
    *,
    layers: Many = None,
    tokens: Places = None,
    channels: Voices = None,
) -> Swap:
    """Exchange the logits of two experts, or of several pairs: their roles swap. Weights sum to 1.

    swap((3, 7), layers=2); swap([(3, 7), (1, 4)], layers=2)
    """
    given: list[Any] = list(experts)
    pairs = [given] if given and all(isinstance(each, int) for each in given) else given
    read = [list(numbers(pair, "experts", "swap") or ()) for pair in pairs]
    flat = [expert for pair in read for expert in pair]
    if not read or any(len(pair) != 2 for pair in read) or len(set(flat)) != len(flat):
        raise EditError(f"swap: experts= is a pair, or pairs without repeats; got {experts!r}")
    exchanged = tuple((pair[0], pair[1]) for pair in read)
    return Swap(*_where("swap", layers, tokens, channels), exchanged)


@scoped
def set_k(k: int, *, layers: Many = None, tokens: Places = None, channels: Voices = None) -> SetK:
    """Give a token its k best experts, fewer or more than the model's; weights sum to 1.

    All tokens of the layer get as many slots as the largest k; those a token does not take have
    weight 0. Raises EditError unless 1 <= k <= experts.
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise EditError(f"set_k: k= is a whole number from 1 on; got {k!r}")
    return SetK(*_where("set_k", layers, tokens, channels), k)


@scoped
def replay(
    source: Any,
    weights: Any = False,
    *,
    layers: Many = None,
    tokens: Places = None,
    channels: Voices = None,
) -> Replay:
    """Give tokens the experts they had in a recorded run, in the recorded order.

    Weights are the softmax of the current logits over them, or with `weights=True` the recorded
    ones. Sums are 1, or what was recorded.

    Args:
        source: a Trace (its tokens must be those that run), a Trace's `routing`, or integer
            experts [layer, batch, pos, k] with -1 for no expert; `pos` counts a row's real tokens.
        weights: True for those of the source, or a tensor [layer, batch, pos, k].
        layers: of a tensor or a `routing`: the blocks its first axis holds (all if None); of a
            Trace: which of its blocks to replay.

    Raises EditError where layers, rows or tokens do not fit.
    """
    kept, held = _recorded(source, weights, numbers(layers, "layers", "replay"))
    where = _where("replay", held, tokens, channels)
    return Replay(*where, kept, "weights" in kept)


@scoped
def steer_experts(
    promote: Any = (),
    suppress: Any = (),
    *,
    layers: Many = None,
    tokens: Places = None,
    channels: Voices = None,
) -> SteerExperts:
    """Steer by expert choice (SteerMoE, arXiv 2509.09660): promoted experts outrank all others.

    s = log_softmax(logits over all experts); promoted ones get max(s) + 0.01, suppressed ones
    min(s) - 0.01; then top-k, and weights are the softmax of the chosen s, which sum to 1.

    Args:
        promote, suppress: experts (with `layers`), or (layer, expert) pairs.

    More than k promoted in one layer are equal and the lowest numbers win, as in the published
    method: a TieWarning says so when the edit is used.
    """
    chosen = _pairs_or_experts(promote, "promote", layers)
    others = _pairs_or_experts(suppress, "suppress", layers)
    if not chosen and not others:
        raise EditError("steer_experts: give promote= or suppress=")
    if both := set(chosen) & set(others):
        raise EditError(f"steer_experts: {sorted(both)} are both promoted and suppressed")
    where = _where("steer_experts", layers, tokens, channels)
    return SteerExperts(*where, chosen, others)


def warn_of_ties(layer: int, promoted: int, k: int) -> None:
    """Say that a layer promotes more experts than a token takes."""
    warnings.warn(
        f"steer_experts promotes {promoted} experts in layer {layer}, but a token takes {k}: "
        f"promoted experts are equal, so the {k} with the lowest numbers are chosen",
        TieWarning,
        stacklevel=2,
    )


def _on_experts(kind: Any, experts: Many, layers: Many, tokens: Places, channels: Voices) -> Any:
    where = _where(kind.verb, layers, tokens, channels)
    return kind(*where, numbers(experts, "experts", kind.verb))


def _where(verb: str, layers: Many, tokens: Places, channels: Voices) -> tuple[Any, Any, Any]:
    return numbers(layers, "layers", verb), places(tokens, verb), voices(channels, verb)


def _pairs_or_experts(value: Any, what: str, layers: Many) -> tuple[Any, ...]:
    listed = [value] if isinstance(value, int) else list(value)
    if all(isinstance(each, int) for each in listed):
        return tuple(listed)
    pairs = [numbers(pair, what, "steer_experts") or () for pair in listed]
    if layers is not None or any(len(pair) != 2 for pair in pairs):
        raise EditError(
            f"steer_experts: {what}= is experts with layers=, or (layer, expert) pairs without; "
            f"got {value!r}"
        )
    return tuple(pairs)


def _recorded(
    source: Any, weights: Any, layers: tuple[int, ...] | None
) -> tuple[dict[str, Tensor], tuple[int, ...] | None]:
    """The tensors of a source, and the blocks their first axis holds."""
    kept: dict[str, Tensor] = {}
    given = source
    if hasattr(source, "routing"):
        if source.routing is None:
            raise EditError("replay: this trace has no routing; trace with routing=True")
        if source.context is not None:
            raise EditError("replay: this trace was cut to some places; give the whole one")
        part = source if layers is None else source.select(layers=list(layers))
        given, layers = part.routing, tuple(part.layers)
        kept |= {"tokens": source.tokens.cpu(), "mask": source.mask.cpu()}
    experts = given if isinstance(given, Tensor) else getattr(given, "experts", None)
    if not isinstance(experts, Tensor) or experts.ndim != 4 or experts.is_floating_point():
        raise EditError("replay: source= is a Trace, its routing, or experts [layer batch pos k]")
    if layers is not None and len(layers) != len(experts):
        raise EditError(
            f"replay: layers= names {len(layers)} blocks, but the source holds {len(experts)}"
        )
    kept["experts"] = experts.detach().cpu().to(torch.int16)
    if weights is not False:
        values = getattr(given, "weights", None) if weights is True else weights
        if not isinstance(values, Tensor) or values.shape != experts.shape:
            raise EditError("replay: weights= is True for a source that has them, or a tensor "
                            f"{list(experts.shape)}")  # fmt: skip
        kept["weights"] = values.detach().float().cpu().clone()
    return kept, layers
