"""Reading and writing activations: hook points, caches and the root that runs under them.

Knows tensors and names, not the model: anything with named hook points can use it. Interventions
as data (`ban`, `zero`, `steer` ...) are made here; see `gptoss_hooks.edits`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gptoss_hooks.edits import (
        Edit,
        TieWarning,
        ablate,
        ban,
        bias,
        force,
        load_edits,
        patch,
        replay,
        route_around,
        save_edits,
        scale,
        set_k,
        steer,
        steer_experts,
        swap,
        zero,
    )
    from gptoss_hooks.points import EditError

__all__ = [
    "Edit",
    "EditError",
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


def __getattr__(name: str):
    """Import a public name when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module 'gptoss_hooks' has no attribute {name!r}")
    home = "gptoss_hooks.points" if name == "EditError" else "gptoss_hooks.edits"
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
