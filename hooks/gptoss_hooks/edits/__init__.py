"""Interventions as data: small immutable values, one form in every function that runs the model.

    model(prompt, edits=[ban(3, layers=12)])
    with model.edited(zero([1, 4], channels="analysis")): ...
    save_edits("figure2", edits); load_edits("figure2")

`routing` edits the router's decision, `sites` any activation. `plan` compiles both to tensors:
`programs` the former for a kernel to read, `act` the latter for hook functions, or where `fused`
knows that a kernel does the same, for that. `check` refuses what a model cannot do before it runs.
"""

from gptoss_hooks.edits.edit import Edit, Edits
from gptoss_hooks.edits.routing import (
    RoutingEdit,
    TieWarning,
    ban,
    bias,
    force,
    replay,
    route_around,
    set_k,
    steer_experts,
    swap,
    zero,
)
from gptoss_hooks.edits.sites import SiteEdit, ablate, patch, scale, steer
from gptoss_hooks.edits.store import load_edits, save_edits

__all__ = [
    "Edit",
    "Edits",
    "RoutingEdit",
    "SiteEdit",
    "TieWarning",
    "ablate",
    "ban",
    "bias",
    "force",
    "load_edits",
    "patch",
    "replay",
    "route_around",
    "save_edits",
    "scale",
    "set_k",
    "steer",
    "steer_experts",
    "swap",
    "zero",
]
