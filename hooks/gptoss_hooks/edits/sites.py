"""Edits of any activation by its hook point's name: ablate, patch, steer, scale.

    model(prompt, edits=[steer("resid_post", direction, 4.0, layers=2, channels="analysis")])

A site is a full name, or a short one that means that point in every block or in `layers=`. They
act where the hook point fires, before hook functions, in list order. Parts of an activation are
named by its axes: heads= (head or kv_head), neurons= (d_ff), experts= (the slots that hold the
expert, or its router logit). An axis the site lacks, a site whose edit cannot act and an unknown
name raise before anything runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from gptoss_hooks.cache import act_name
from gptoss_hooks.edits.edit import Edit, Many, Places, Voices, numbers, places, scoped, voices
from gptoss_hooks.points import EditError

PLAIN = ""
"""Name of a value that is the same for every hook point."""


@dataclass(frozen=True, repr=False, eq=False)
class SiteEdit(Edit):
    """An edit of an activation."""

    site: str = ""
    heads: tuple[int, ...] | None = None
    neurons: tuple[int, ...] | None = None
    experts: tuple[int, ...] | None = None


@dataclass(frozen=True, repr=False, eq=False)
class Ablate(SiteEdit):
    """See `ablate`."""

    verb: ClassVar[str] = "ablate"
    to: Mapping[str, Tensor] | Tensor | None = None


@dataclass(frozen=True, repr=False, eq=False)
class Patch(SiteEdit):
    """See `patch`."""

    verb: ClassVar[str] = "patch"
    value: Mapping[str, Tensor] | Tensor = field(default_factory=dict)


@dataclass(frozen=True, repr=False, eq=False)
class Steer(SiteEdit):
    """See `steer`."""

    verb: ClassVar[str] = "steer"
    vector: Mapping[str, Tensor] | Tensor = field(default_factory=dict)
    strength: float = 1.0


@dataclass(frozen=True, repr=False, eq=False)
class Scale(SiteEdit):
    """See `scale`."""

    verb: ClassVar[str] = "scale"
    factor: float = 1.0


@scoped
def ablate(
    site: str,
    *,
    to: Any = None,
    layers: Many = None,
    tokens: Places = None,
    channels: Voices = None,
    heads: Many = None,
    neurons: Many = None,
    experts: Many = None,
) -> Ablate:
    """Replace an activation by zero, or by `to`: a mean, say, that broadcasts from the right.

    `to` may also be a number, or a mapping from hook name to tensor (an ActivationCache).
    """
    where = _where("ablate", site, layers, tokens, channels, heads, neurons, experts)
    return Ablate(*where, None if to is None else _values(to, where, "ablate"))


@scoped
def patch(
    site: str,
    value: Any,
    *,
    layers: Many = None,
    tokens: Places = None,
    channels: Voices = None,
    heads: Many = None,
    neurons: Many = None,
    experts: Many = None,
) -> Patch:
    """Replace an activation by what it was elsewhere.

    `value` is a Trace or ActivationCache that holds the site, a mapping from hook name to tensor,
    or a tensor that broadcasts from the right. In one with all axes, `pos` counts places of a run
    of the same shape, else positions of a row's real tokens.
    """
    where = _where("patch", site, layers, tokens, channels, heads, neurons, experts)
    return Patch(*where, _values(value, where, "patch"))


@scoped
def steer(
    site: str,
    vector: Any,
    strength: float = 1.0,
    *,
    layers: Many = None,
    tokens: Places = None,
    channels: Voices = None,
    heads: Many = None,
    neurons: Many = None,
    experts: Many = None,
) -> Steer:
    """Add `strength` times `vector` (in the activation's own units) to an activation."""
    where = _where("steer", site, layers, tokens, channels, heads, neurons, experts)
    values = _values(vector, where, "steer")
    for each in [values] if isinstance(values, Tensor) else values.values():
        if not bool(each.isfinite().all()):
            raise EditError("steer: the vector holds NaN or infinity")
    return Steer(*where, values, _finite(strength, "steer", "strength"))


@scoped
def scale(
    site: str,
    factor: float,
    *,
    layers: Many = None,
    tokens: Places = None,
    channels: Voices = None,
    heads: Many = None,
    neurons: Many = None,
    experts: Many = None,
) -> Scale:
    """Multiply an activation by `factor`."""
    where = _where("scale", site, layers, tokens, channels, heads, neurons, experts)
    return Scale(*where, _finite(factor, "scale", "factor"))


def names_of(edit: SiteEdit, root: Any) -> list[str]:
    """The hook points an edit acts at; raises for unknown names, sites and layers."""
    if edit.layers is None:
        return root.full_names(edit.site)
    named = [name for layer in edit.layers for name in root.full_names((edit.site, layer))]
    return list(dict.fromkeys(named))


def _where(
    verb: str,
    site: str,
    layers: Many,
    tokens: Places,
    channels: Voices,
    heads: Many,
    neurons: Many,
    experts: Many,
) -> tuple[Any, Any, Any, str, Any, Any, Any]:
    if not isinstance(site, str) or not site:
        raise EditError(f"{verb}: site= is the name of a hook point; got {site!r}")
    if site.startswith("blocks.") and layers is not None:
        raise EditError(f"{verb}: {site!r} names its block already; leave out layers={layers!r}")
    parts = {"layers": layers, "heads": heads, "neurons": neurons, "experts": experts}
    read = {name: numbers(value, name, verb) for name, value in parts.items()}
    return (
        read["layers"], places(tokens, verb), voices(channels, verb),
        site, read["heads"], read["neurons"], read["experts"],
    )  # fmt: skip


def _values(value: Any, where: tuple[Any, ...], verb: str) -> Mapping[str, Tensor] | Tensor:
    """A tensor, or those of a cache or trace that belong to the site, detached and copied."""
    held = getattr(value, "activations", getattr(value, "cache_dict", value))
    if not isinstance(held, Mapping):
        return torch.as_tensor(held, dtype=None if isinstance(held, Tensor) else torch.float32) \
            .detach().cpu().clone()  # fmt: skip
    layers, site = where[0], where[3]
    tail = act_name(site, 0).removeprefix("blocks.0")
    wanted = {name: t for name, t in held.items() if name == site or name.endswith(tail)}
    if layers is not None and min(layers) >= 0:
        wanted = {act_name(site, layer): wanted.get(act_name(site, layer)) for layer in layers}
    if not wanted or None in wanted.values():
        there = ", ".join(list(held)[:6])
        raise EditError(f"{verb}: the source holds no {site!r} for these layers; it has {there}")
    return {name: t.detach().cpu().clone() for name, t in wanted.items() if t is not None}


def _finite(value: float, verb: str, what: str) -> float:
    if isinstance(value, bool) or not math.isfinite(value):
        raise EditError(f"{verb}: {what}= is a finite number; got {value!r}")
    return float(value)
