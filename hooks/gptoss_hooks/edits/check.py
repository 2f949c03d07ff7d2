"""Whether edits fit a model, found out before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gptoss_hooks.edits.act import refuse
from gptoss_hooks.edits.edit import Edit
from gptoss_hooks.edits.routing import ExpertsEdit, Replay, SetK, SteerExperts, Swap
from gptoss_hooks.edits.sites import SiteEdit, names_of
from gptoss_hooks.points import EditError


def check(edits: Sequence[Edit], root: Any) -> None:
    """Raise for what is no edit, and for layers, experts and sites that the model lacks."""
    sizes = root.axis_sizes(1, 1)
    for edit in edits:
        if not isinstance(edit, Edit):
            raise EditError(
                f"edits= takes values such as ban(3) or steer('resid_post', v); got {edit!r}. "
                "Functions go to run_with_hooks(fwd_hooks=)."
            )
        _among(edit.verb, "layers", edit.layers, root.n_layers, negative=True)
        if isinstance(edit, SiteEdit):
            for name in names_of(edit, root):
                refuse(edit, root.hook_dict[name], sizes)
        else:
            _routing(edit, root.n_layers, sizes)


def _routing(edit: Edit, n_layers: int, sizes: Mapping[str, int]) -> None:
    n_experts = sizes["expert"]
    if isinstance(edit, ExpertsEdit):
        _among(edit.verb, "experts", edit.experts, n_experts)
    elif isinstance(edit, Swap):
        _among(edit.verb, "experts", [e for pair in edit.experts for e in pair], n_experts)
    elif isinstance(edit, SteerExperts):
        named = [*edit.promote, *edit.suppress]
        _among(edit.verb, "experts", [e if isinstance(e, int) else e[1] for e in named], n_experts)
        layers = [e[0] for e in named if not isinstance(e, int)]
        _among(edit.verb, "layers", layers, n_layers, negative=True)
    elif isinstance(edit, SetK) and edit.k > n_experts:
        raise EditError(f"set_k: a layer has {n_experts} experts; got k = {edit.k}")
    elif isinstance(edit, Replay) and edit.layers is None:
        held = len(edit.source["experts"])
        if held != n_layers:
            raise EditError(
                f"replay: the source holds {held} layers, the model has {n_layers}; "
                "name those it holds with layers="
            )


def _among(
    verb: str, what: str, given: Sequence[int] | None, size: int, *, negative: bool = False
) -> None:
    low = -size if negative else 0
    if wrong := [each for each in given or () if not low <= each < size]:
        raise EditError(f"{verb}: {what} are 0 to {size - 1}; got {wrong[0]}")
