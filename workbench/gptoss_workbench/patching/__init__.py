"""Activation patching, its gradient estimates, and path patching.

from gptoss_workbench.patching import activation_patching, logit_difference
"""

from gptoss_workbench.patching.gradients import attribution_patching, integrated_gradients
from gptoss_workbench.patching.metrics import (
    Metric,
    kl_divergence,
    log_prob,
    logit_difference,
    loss,
)
from gptoss_workbench.patching.nodes import SITES, Cells
from gptoss_workbench.patching.paths import Receiver, path_patching
from gptoss_workbench.patching.result import Grid, PatchResult
from gptoss_workbench.patching.sweep import activation_patching

__all__ = [
    "SITES",
    "Cells",
    "Grid",
    "Metric",
    "PatchResult",
    "Receiver",
    "activation_patching",
    "attribution_patching",
    "integrated_gradients",
    "kl_divergence",
    "log_prob",
    "logit_difference",
    "loss",
    "path_patching",
]


def __dir__() -> list[str]:
    return sorted(__all__)
