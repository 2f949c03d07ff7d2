"""Running a model once and keeping what it showed as a Trace."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from gptoss_hooks import axes as glossary
from gptoss_hooks.decompose import is_single, take
from gptoss_hooks.positions import PositionSlice
from gptoss_hooks.root import NameFilter
from gptoss_workbench import harmony
from gptoss_workbench.provenance import provenance
from gptoss_workbench.trace import PLACES, Context, Routing, Trace

INDICES, WEIGHTS, LOGITS = (
    f"mlp.hook_{point}" for point in ("expert_indices", "expert_weights", "router_logits")
)


@dataclass
class _Recorder:
    """What the hooks of one run have kept so far."""

    kept: dict[str, Tensor] = field(default_factory=dict)
    axes: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def keep(self, tensor: Tensor, hook: Any, *, where: Any, device: Any) -> None:
        """Copy the wanted places, so that nothing later in the run can change them."""
        at = next(i for i, name in enumerate(hook.axes) if name in PLACES)
        self.kept[hook.name] = take(tensor.detach(), where, at).to(device, copy=True)
        self.axes[hook.name] = tuple(hook.axes)


def trace_run(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    mask: Bool[Tensor, "batch pos"] | None = None,
    *,
    names_filter: NameFilter = None,
    pos_slice: Any = None,
    routing: bool = True,
    router_logits: bool = False,
    device: str | torch.device = "cpu",
) -> Trace:
    """Run `model` on tokens [batch, pos] and keep routing and the named activations.

    `names_filter` is None for no activations, one name or several (short forms too: "resid_post"
    for every layer, ("resid_post", 5) for one), or a function of the name. `pos_slice` keeps a run
    of neighbouring places. An interrupt leaves no hook behind and keeps what was finished at
    `model.last_trace`.
    """
    mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.bool()
    names = [] if names_filter is None else model.hook_names(names_filter)
    routers = router_names(model, router_logits) if routing else []
    where = _neighbours(pos_slice, tokens.shape[1])
    PositionSlice(pos_slice).refuse_padding(mask)
    wanted = list(dict.fromkeys([*names, *routers]))
    model.check_cache_fits(wanted, *tokens.shape, device, PositionSlice(where))
    recorder = _Recorder()
    keep = partial(recorder.keep, where=where, device=device)
    build = partial(_trace, model, tokens.cpu(), mask.cpu(), recorder, names, where)
    try:
        with torch.no_grad(), model.recording(wanted, keep):
            model(tokens, attention_mask=mask, return_type=None)
    except KeyboardInterrupt as interrupt:
        model.last_trace = build(complete=False, routing=routing)
        done = len(model.last_trace.layers)
        interrupt.add_note(f"the finished part ({done} layers) is kept at model.last_trace")
        raise
    return build(complete=True, routing=routing)


def router_names(model: Any, logits: bool) -> list[str]:
    """Name the hook points that hold every router's choice."""
    points = (INDICES, WEIGHTS, LOGITS) if logits else (INDICES, WEIGHTS)
    return [f"blocks.{layer}.{p}" for layer in range(model.cfg.n_layers) for p in points]


def _neighbours(pos_slice: Any, size: int) -> slice:
    """Read a position slice as a run of neighbouring places."""
    if pos_slice is None:
        return slice(0, size)
    at = take(torch.arange(size), pos_slice, 0).reshape(-1).tolist()
    if not at or at != list(range(at[0], at[-1] + 1)):
        what = "place" if is_single(pos_slice) else "run of neighbouring places"
        raise ValueError(f"trace: expected pos_slice to be a {what} within {size}, got {pos_slice}")
    return slice(at[0], at[-1] + 1)


def _trace(
    model: Any,
    tokens: Tensor,
    mask: Tensor,
    recorder: _Recorder,
    names: list[str],
    where: slice,
    *,
    complete: bool,
    routing: bool,
) -> Trace:
    """Put together what the hooks have kept."""
    chosen = _routing(recorder.kept, model.cfg.n_layers) if routing else None
    finished = [layer for layer in range(model.cfg.n_layers) if _done(recorder.kept, layer)]
    strings, spans = _texts(model, tokens, mask)
    whole = Context(tokens, mask, strings)
    cut = where != slice(0, tokens.shape[1])
    return Trace(
        tokens=tokens[:, where],
        mask=mask[:, where],
        strings=strings and [row[where] for row in strings],
        spans=spans and [row[where] for row in spans],
        routing=chosen,
        activations={name: recorder.kept[name] for name in names if name in recorder.kept},
        axes={name: recorder.axes[name] for name in names if name in recorder.kept},
        layers=tuple(finished if routing else _blocks(names, recorder.kept)),
        places=tuple(range(where.start, where.stop)),
        context=whole if cut else None,
        config=json.loads(json.dumps(asdict(model.config))),
        provenance=provenance(model, tokens, mask) | {"complete": complete},
    )


def _done(kept: dict[str, Tensor], layer: int) -> bool:
    return f"blocks.{layer}.{WEIGHTS}" in kept


def _blocks(names: list[str], kept: dict[str, Tensor]) -> list[int]:
    found = {glossary.layer_of(name) for name in names if name in kept}
    return sorted(layer for layer in found if layer is not None)


def _routing(kept: dict[str, Tensor], n_layers: int) -> Routing | None:
    """Stack the finished layers' choices; None when no layer was finished."""
    layers = [layer for layer in range(n_layers) if _done(kept, layer)]
    if not layers:
        return None
    experts, weights, logits = (
        [kept[f"blocks.{i}.{point}"] for i in layers if f"blocks.{i}.{point}" in kept]
        for point in (INDICES, WEIGHTS, LOGITS)
    )
    return Routing(
        torch.stack(_widened(experts, -1)).to(torch.int16),
        torch.stack(_widened(weights, 0)).float(),
        torch.stack(logits).float() if len(logits) == len(layers) else None,
    )


def _widened(layers: list[Tensor], filler: float) -> list[Tensor]:
    """Layers with as many slots as the widest (an edit may have given one more experts)."""
    width = max(layer.shape[-1] for layer in layers)
    return [F.pad(layer, (0, width - layer.shape[-1]), value=filler) for layer in layers]


def _texts(
    model: Any, tokens: Tensor, mask: Tensor
) -> tuple[list[list[str]] | None, list[harmony.Spans] | None]:
    """Give the tokens' texts and spans where the model has a tokenizer."""
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        return None, None
    rows = tokens.tolist()
    return (
        [tokenizer.strings(row) for row in rows],
        [harmony.spans(row, tokenizer) for row in rows],
    )
