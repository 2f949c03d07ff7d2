"""See inside gpt-oss: every activation, every expert choice, every step of reasoning.

import gptoss_workbench as wb
model = wb.load()                       # gpt-oss-nano, embedded; or a folder, or a hub id
answer = model.generate(messages=[{"role": "user", "content": "..."}], max_new_tokens=200)
trace = model.trace(answer.tokens)      # tokens, channels, routing, chosen activations
wb.views.experts(trace)
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gptoss_hooks.cache import ActivationCache
    from gptoss_hooks.edits import (
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
    from gptoss_workbench import (
        attribution,
        harmony,
        heads,
        lens,
        nano,
        patching,
        routing,
        steering,
        views,
    )
    from gptoss_workbench.attribution import logit_attribution
    from gptoss_workbench.checkpoint import CheckpointError, checkpoint_info, save_checkpoint
    from gptoss_workbench.config import GPT_OSS_20B, GPT_OSS_120B, Config
    from gptoss_workbench.effects import effect_table
    from gptoss_workbench.generation import Generation
    from gptoss_workbench.heads import head_summary
    from gptoss_workbench.kv_cache import KVCache
    from gptoss_workbench.lens import LensResult, TunedLens, logit_lens, train_tuned_lens
    from gptoss_workbench.loading import load
    from gptoss_workbench.model import GptOss
    from gptoss_workbench.patching import (
        PatchResult,
        activation_patching,
        attribution_patching,
        integrated_gradients,
        path_patching,
    )
    from gptoss_workbench.prune import prune_experts
    from gptoss_workbench.routing import RoutingTrace, trace_routing
    from gptoss_workbench.steering import difference_of_means
    from gptoss_workbench.table import Table
    from gptoss_workbench.tokenizer import Tokenizer
    from gptoss_workbench.trace import Trace

_HOME = {
    "ActivationCache": "gptoss_hooks.cache",
    "EditError": "gptoss_hooks.points",
    "CheckpointError": "gptoss_workbench.checkpoint",
    "checkpoint_info": "gptoss_workbench.checkpoint",
    "save_checkpoint": "gptoss_workbench.checkpoint",
    "Config": "gptoss_workbench.config",
    "GPT_OSS_20B": "gptoss_workbench.config",
    "GPT_OSS_120B": "gptoss_workbench.config",
    "Generation": "gptoss_workbench.generation",
    "KVCache": "gptoss_workbench.kv_cache",
    "load": "gptoss_workbench.loading",
    "GptOss": "gptoss_workbench.model",
    "Tokenizer": "gptoss_workbench.tokenizer",
    "Trace": "gptoss_workbench.trace",
}
_EDITS = (
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
)
"""Interventions as data."""
_HOME |= dict.fromkeys(_EDITS, "gptoss_hooks.edits")
_HOME |= {"TieWarning": "gptoss_hooks.edits", "effect_table": "gptoss_workbench.effects"}
_HOME |= {
    "LensResult": "gptoss_workbench.lens",
    "PatchResult": "gptoss_workbench.patching",
    "RoutingTrace": "gptoss_workbench.routing",
    "Table": "gptoss_workbench.table",
    "TunedLens": "gptoss_workbench.lens",
    "activation_patching": "gptoss_workbench.patching",
    "attribution_patching": "gptoss_workbench.patching",
    "difference_of_means": "gptoss_workbench.steering",
    "head_summary": "gptoss_workbench.heads",
    "integrated_gradients": "gptoss_workbench.patching",
    "logit_attribution": "gptoss_workbench.attribution",
    "logit_lens": "gptoss_workbench.lens",
    "path_patching": "gptoss_workbench.patching",
    "prune_experts": "gptoss_workbench.prune",
    "trace_routing": "gptoss_workbench.routing",
    "train_tuned_lens": "gptoss_workbench.lens",
}
_MODULES = (
    "attribution", "harmony", "heads", "lens", "nano", "patching", "routing", "steering", "views",
)  # fmt: skip

__all__ = [
    "GPT_OSS_20B",
    "GPT_OSS_120B",
    "ActivationCache",
    "CheckpointError",
    "Config",
    "EditError",
    "Generation",
    "GptOss",
    "KVCache",
    "LensResult",
    "PatchResult",
    "RoutingTrace",
    "Table",
    "TieWarning",
    "Tokenizer",
    "Trace",
    "TunedLens",
    "ablate",
    "activation_patching",
    "attribution",
    "attribution_patching",
    "ban",
    "bias",
    "checkpoint_info",
    "difference_of_means",
    "effect_table",
    "force",
    "harmony",
    "head_summary",
    "heads",
    "integrated_gradients",
    "lens",
    "load",
    "load_edits",
    "logit_attribution",
    "logit_lens",
    "nano",
    "patch",
    "patching",
    "path_patching",
    "prune_experts",
    "replay",
    "route_around",
    "routing",
    "save_checkpoint",
    "save_edits",
    "scale",
    "set_k",
    "steer",
    "steer_experts",
    "steering",
    "swap",
    "trace_routing",
    "train_tuned_lens",
    "views",
    "zero",
]


def __getattr__(name: str):
    """Import a public name when it is first used, so that importing the package stays light."""
    if name in _MODULES:
        return import_module(f"gptoss_workbench.{name}")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'gptoss_workbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
