"""The root of a model with hook points: attaching functions, and running under them.

Argument names and order follow TransformerLens. Unlike there, leaving a context removes exactly
what the context attached, also after an exception.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gptoss_hooks import heap, memory, names
from gptoss_hooks.cache import ActivationCache, act_name
from gptoss_hooks.edits.edited import Edited
from gptoss_hooks.points import HookFunction, HookPoint
from gptoss_hooks.positions import PositionSlice

NameFilter = str | tuple[Any, ...] | Sequence[str | tuple[Any, ...]] | Callable[[str], bool] | None
Hooks = Iterable[tuple[str | Callable[[str], bool], HookFunction]]


class InputSize(NamedTuple):
    """What a forward call is about to run."""

    batch: int
    pos: int
    past: int
    """positions already in the KV cache"""
    device: torch.device
    mask: Tensor | None = None
    """[batch, pos] False on padding; None where there is none"""


class HookPointInfo(NamedTuple):
    """One row of `hook_points()`."""

    name: str
    shape: str
    """axis names from the glossary"""
    dtype: torch.dtype
    access: str
    """'live' (an edit acts) or 'read-only'"""
    kept: bool
    """whether a cache without a filter keeps it"""


class HookPointTable(list[HookPointInfo]):
    """All hook points of a model in firing order."""

    def __repr__(self) -> str:
        width = max((len(row.name) for row in self), default=0)
        return "\n".join(
            f"{row.name:<{width}}  [{row.shape}]  {str(row.dtype)[6:]}  {row.access}"
            f"{'' if row.kept else '  (on request)'}"
            for row in self
        )

    def to_pandas(self):
        """One row a hook point (needs pandas)."""
        import pandas as pd

        return pd.DataFrame(list(self), columns=list(HookPointInfo._fields))


class HookedRoot(Edited, nn.Module):
    """Mixin for a model whose submodules include hook points.

    A subclass calls `setup()` once its modules exist and implements `axis_sizes`.
    """

    hook_dict: dict[str, HookPoint]
    n_layers: int
    activation_dtype: torch.dtype

    def setup(self) -> None:
        """Name every hook point by its path and switch to evaluation mode.

        A module finds a child in its own dictionary in a tenth of the microsecond that it takes
        through `nn.Module.__getattr__`, so points are put there too; setting another one in their
        place removes them.
        """
        self.hook_dict = {}
        for name, module in self.named_modules():
            points = {n: m for n, m in module.named_children() if isinstance(m, HookPoint)}
            module.__dict__.update(points)
            if isinstance(module, HookPoint):
                module.name = name
                self.hook_dict[name] = module
        self.eval()

    def axis_sizes(self, batch: int, pos: int, past: int = 0) -> dict[str, int]:
        """Length of every axis for an input of this size."""
        raise TypeError(f"{type(self).__name__} must implement axis_sizes")

    # -- names ---------------------------------------------------------------------------------

    def canonical_hook_name(self, name: str) -> str:
        """The hook point meant by `name` (aliases allowed); unknown names list near matches."""
        return names.canonical(name, self.hook_dict, self.n_layers)

    def hook_axes(self, name: str) -> tuple[str, ...]:
        """Axis names of a hook point."""
        return self.hook_dict[self.canonical_hook_name(name)].axes

    def hook_names(self, names_filter: NameFilter = None) -> list[str]:
        """Names a filter selects, in firing order; None selects all that are kept by default.

        A filter is a name, a (name, layer) pair, a sequence of them, or a rule for full names.
        """
        if names_filter is None:
            return [n for n in self.hook_dict if self._kept(n)]
        if callable(names_filter):
            return [name for name in self.hook_dict if names_filter(name)]
        one = isinstance(names_filter, str) or _is_name(names_filter)
        wanted: Any = [names_filter] if one else names_filter
        chosen = {full for name in wanted for full in self.full_names(name)}
        return [name for name in self.hook_dict if name in chosen]

    def full_names(self, name: str | tuple[Any, ...]) -> list[str]:
        """What one entry of a filter means: a full name, an alias, ("resid_post", 5), or a short
        name without a layer, which means that point in every layer."""
        if not isinstance(name, str):
            short, layer, *part = name
            layer = layer + self.n_layers if layer is not None and layer < 0 else layer
            return [self.canonical_hook_name(act_name(short, layer, *part))]
        if name in self.hook_dict:
            return [name]
        every = [act_name(name, layer) for layer in range(self.n_layers)]
        if act_name(name) not in self.hook_dict and every[0] in self.hook_dict:
            return every
        return [self.canonical_hook_name(act_name(name))]

    def _kept(self, name: str) -> bool:
        return not self.hook_dict[name].on_request

    def hook_points(self) -> HookPointTable:
        """Every hook point: name, shape, dtype, live or read-only."""
        return HookPointTable(
            HookPointInfo(
                name,
                " ".join(point.axes),
                point.dtype or self.activation_dtype,
                "live" if point.live else "read-only",
                self._kept(name),
            )
            for name, point in self.hook_dict.items()
        )

    # -- attaching -----------------------------------------------------------------------------

    def add_hook(
        self,
        name: str | Callable[[str], bool],
        hook: HookFunction,
        dir: str = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """Attach `hook(tensor, hook=point)` until `reset_hooks` (permanent ones stay on)."""
        for each in self._named(name):
            self.hook_dict[each].add_hook(hook, dir, is_permanent, level, prepend)

    def add_perma_hook(
        self, name: str | Callable[[str], bool], hook: HookFunction, dir: str = "fwd"
    ) -> None:
        """Attach a hook that `reset_hooks` leaves on."""
        self.add_hook(name, hook, dir, is_permanent=True)

    def _named(self, name: str | Callable[[str], bool]) -> list[str]:
        found = self.hook_names(name)
        if not found:
            raise names.UnknownHook(f"the filter {name!r} matches no hook point")
        return found

    def reset_hooks(
        self,
        clear_contexts: bool = True,
        direction: str = "both",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Detach every function that is not permanent (with a level, only those added at it)."""
        for point in self.hook_dict.values():
            point.remove_hooks(direction, including_permanent, level)
            if clear_contexts:
                point.clear_context()

    @contextmanager
    def hooks(
        self,
        fwd_hooks: Hooks = (),
        bwd_hooks: Hooks = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Iterator["HookedRoot"]:
        """Run the block with these hooks; on leaving, the model is as it was found."""
        with ExitStack() as leaving:
            for direction, hooks in (("fwd", fwd_hooks), ("bwd", bwd_hooks)):
                for name, function in hooks:
                    for each in self._named(name):
                        detach = self.hook_dict[each].add_hook(function, direction)
                        if reset_hooks_end:
                            leaving.callback(detach)
            if clear_contexts:
                for point in self.hook_dict.values():
                    leaving.callback(point.clear_context)
            yield self

    @contextmanager
    def recording(
        self, names_filter: NameFilter, keep: Callable[[Tensor, HookPoint], None]
    ) -> Iterator[list[str]]:
        """Call `keep(tensor, point)` at the selected points; promises not to edit."""
        selected = self.hook_names(names_filter)
        with ExitStack() as leaving:
            leaving.enter_context(heap.large_apart())
            for name in selected:
                point = self.hook_dict[name]

                def record(tensor: Tensor, hook: HookPoint) -> None:
                    keep(tensor.detach(), hook)

                leaving.callback(point.add_hook(record, reads_only=True))
            yield selected

    # -- running -------------------------------------------------------------------------------

    def run_with_hooks(
        self,
        *model_args: Any,
        fwd_hooks: Hooks = (),
        bwd_hooks: Hooks = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **model_kwargs: Any,
    ) -> Any:
        """One forward pass under hooks. Backward hooks fire later, from the graph they are in."""
        with self.hooks(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts):
            return self(*model_args, **model_kwargs)

    def run_with_cache(
        self,
        *model_args: Any,
        return_cache_object: bool = True,
        remove_batch_dim: bool = False,
        names_filter: NameFilter = None,
        stop_at_layer: int | None = None,
        start_at_layer: int | None = None,
        pos_slice: Any = None,
        incl_bwd: bool = False,
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        device: torch.device | str | None = None,
        **model_kwargs: Any,
    ) -> tuple[Any, ActivationCache | dict[str, Tensor]]:
        """One forward pass, keeping activations (and with `incl_bwd` gradients as `name_grad`).

        Raises MemoryError before it starts when what would be kept does not fit.
        """
        if not reset_hooks_end:
            raise ValueError("run_with_cache always takes its own hooks off; use add_hook to stay")
        where = PositionSlice(pos_slice)
        kept: dict[str, Tensor] = {}
        at = {name: i for i, name in enumerate(self.hook_names(names_filter))}

        def keep(tensor: Tensor, hook: HookPoint, suffix: str = "") -> None:
            kept[hook.name + suffix] = _alone(where(tensor, hook.axes)).to(device)

        def keep_gradient(grad: Tensor, hook: HookPoint) -> None:
            keep(grad.detach(), hook, "_grad")

        limits = {"stop_at_layer": stop_at_layer, "start_at_layer": start_at_layer}
        model_kwargs |= {name: layer for name, layer in limits.items() if layer is not None}
        self._refuse_if_too_large(list(at), model_args, model_kwargs, where, device)
        backward = [(name, keep_gradient) for name in at] if incl_bwd else []
        with (
            self.recording(list(at), keep),
            self.hooks((), backward, clear_contexts=clear_contexts),
        ):
            output = self(*model_args, **model_kwargs)
            if incl_bwd:
                output.backward()
        kept = {name: kept[name] for name in sorted(kept, key=lambda n: _rank(n, at))}
        cache = ActivationCache(kept, self, has_batch_dim=True)
        cache = cache.remove_batch_dim() if remove_batch_dim else cache
        return output, cache if return_cache_object else cache.cache_dict

    def _refuse_if_too_large(
        self, chosen: list[str], args: tuple, kwargs: dict, where: PositionSlice, device: Any
    ) -> None:
        size = self.input_size(*args, **kwargs)
        if size is not None:
            batch, pos, past, home, mask = size
            where.refuse_padding(mask)
            self.check_cache_fits(chosen, batch, pos, device or home, where, past)

    def input_size(self, *args: Any, **kwargs: Any) -> "InputSize | None":
        """Size of a forward call with these arguments; None where it cannot be told."""
        return None

    def cache_bytes(
        self,
        chosen: NameFilter,
        batch: int,
        pos: int,
        where: PositionSlice | None = None,
        past: int = 0,
    ) -> int:
        """Bytes a cache of these hook points would hold for an input of this size."""
        sizes, total = self.axis_sizes(batch, pos, past), 0
        for name in self.hook_names(chosen):
            point = self.hook_dict[name]
            count = 1
            for axis in point.axes:
                size = sizes[axis]
                count *= where.length(size) if where and axis in ("pos", "query") else size
            total += count * (point.dtype or self.activation_dtype).itemsize
        return total

    def check_cache_fits(
        self,
        chosen: NameFilter,
        batch: int,
        pos: int,
        device: torch.device | str = "cpu",
        where: PositionSlice | None = None,
        past: int = 0,
    ) -> None:
        """Refuse, before it is started, a cache that would not fit in free memory."""
        memory.require(
            self.cache_bytes(chosen, batch, pos, where, past),
            device,
            f"a cache of {len(self.hook_names(chosen))} hook points for {batch} x {pos} tokens",
            "Keep less with names_filter= or pos_slice=, or put it elsewhere with device=.",
        )


def _is_name(given: Any) -> bool:
    """Whether a tuple is one name with its layer, as ("resid_post", 5), rather than several."""
    return isinstance(given, tuple) and len(given) > 1 and isinstance(given[1], int | None)


def _rank(name: str, at: dict[str, int]) -> tuple[int, bool]:
    return at[name.removesuffix("_grad")], name.endswith("_grad")


def _alone(tensor: Tensor) -> Tensor:
    """The tensor without the larger one it may be a slice of, which it would keep in memory."""
    return tensor if tensor.untyped_storage().nbytes() <= tensor.nbytes else tensor.clone()
