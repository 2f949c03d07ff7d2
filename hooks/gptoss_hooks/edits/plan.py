"""Edits of a model compiled to tensors, before it is known which tokens they act on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from gptoss_hooks.edits import act, programs, tree
from gptoss_hooks.edits.edit import Edit
from gptoss_hooks.edits.programs import LayerPlan, Sizes
from gptoss_hooks.edits.routing import RoutingEdit
from gptoss_hooks.edits.sites import SiteEdit


class Plan(NamedTuple):
    """What edits say, in tensors that are the same for every token."""

    sizes: Sizes
    routes: tuple[LayerPlan | None, ...]
    """one a layer, or none where no edit is of the router's decision"""
    sites: act.Steps

    def on(self, device: torch.device) -> Plan:
        """The plan on a device; a tensor that is there already is shared."""
        return tree.over(self, lambda tensor: tensor.to(device))


def plan(edits: Sequence[Edit], root: Any) -> Plan:
    """Compile edits for a model, on the CPU."""
    axes = root.axis_sizes(1, 1)
    sizes = Sizes(root.n_layers, axes["expert"], axes["k"])
    routing = [(i, edit) for i, edit in enumerate(edits) if isinstance(edit, RoutingEdit)]
    sites = [(i, edit) for i, edit in enumerate(edits) if isinstance(edit, SiteEdit)]
    routes = programs.plans(routing, sizes) if routing else ()
    return Plan(sizes, routes, act.steps(sites, root))
