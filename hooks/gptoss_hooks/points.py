"""A hook point: a named place in the forward pass where a tensor can be read or replaced.

It is a module that is *called* with the tensor, so three kinds of observer work alike: functions
added here (TransformerLens style), plain torch module hooks, and an NNsight trace. Without an
observer the call returns its argument at once.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

HookFunction = Callable[..., Tensor | None]
"""fn(tensor, hook=point) -> the tensor to go on with, or None to leave it"""


class EditError(ValueError):
    """An edit that cannot act, or that does not fit the place it was made at."""


class _Attached(NamedTuple):
    function: HookFunction
    permanent: bool
    reads_only: bool
    level: int | None


_EDITORS = (
    "_backward_functions",
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)
"""Where a point keeps those who may edit; `_forward_functions` hold read-only recorders too."""


class HookPoint(nn.Module):
    """One named activation. `axes` are glossary names, `live` says whether an edit acts."""

    def __init__(
        self,
        *axes: str,
        dtype: torch.dtype | None = None,
        shared: bool = False,
        instead: str | None = None,
        on_request: bool = False,
        takes: str = "",
    ):
        """Describe the tensor that will come by.

        Args:
            axes: names from `gptoss_hooks.axes`.
            dtype: fixed dtype; None means the model's.
            shared: the tensor is also used elsewhere (residual stream), so editors get a copy.
            instead: the hook that can do what an edit here cannot; makes this point read-only.
            on_request: left out when a cache keeps "everything" (large, or derived).
            takes: which edits the kernel before it reads as tensors (see `edits.fused`).
        """
        super().__init__()
        self.axes, self.dtype, self.shared = axes, dtype, shared
        self.instead, self.on_request, self.takes = instead, on_request, takes
        self.in_kernel: Callable[..., dict[str, Tensor]] | None = None
        self.name = ""
        self.ctx: dict = {}
        self._forward_functions: list[_Attached] = []
        self._backward_functions: list[_Attached] = []

    @property
    def live(self) -> bool:
        """Whether an edit here changes what follows."""
        return self.instead is None

    @property
    def observed(self) -> bool:
        """Whether anything looks at this point: a function, a torch hook or a running trace.

        Asked at every point of every pass, so it is written out: a loop takes twice as long.
        """
        own = self.__dict__
        if (
            own["_forward_functions"]
            or own["_backward_functions"]
            or own["_forward_hooks"]
            or own["_forward_pre_hooks"]
            or own["_backward_hooks"]
            or own["_backward_pre_hooks"]
        ):
            return True
        return "__nnsight__" in own and traced(self)

    @property
    def edited_or_differentiated(self) -> bool:
        """Whether anything but a read-only recorder looks: it may ask for gradients."""
        return any(not a.reads_only for a in self._forward_functions) or self._may_edit()

    def _may_edit(self) -> bool:
        """Whether a backward function, a torch hook or a running trace is here."""
        own = self.__dict__
        return any(own[name] for name in _EDITORS) or traced(self)

    def layer(self) -> int:
        """The block this point belongs to."""
        parts = self.name.split(".")
        if parts[0] != "blocks":
            raise ValueError(f"{self.name} is not inside a block")
        return int(parts[1])

    def add_hook(
        self,
        hook: HookFunction,
        dir: str = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
        *,
        reads_only: bool = False,
    ) -> Callable[[], None]:
        """Attach `hook(tensor, hook=self)`; the returned function detaches exactly this one."""
        if dir not in ("fwd", "bwd"):
            raise ValueError(f"add_hook: dir is 'fwd' or 'bwd'; got {dir!r}")
        functions = self._forward_functions if dir == "fwd" else self._backward_functions
        attached = _Attached(hook, is_permanent, reads_only, level)
        functions.insert(0 if prepend else len(functions), attached)

        def detach() -> None:
            functions[:] = [each for each in functions if each is not attached]

        return detach

    def remove_hooks(
        self, dir: str = "both", including_permanent: bool = False, level: int | None = None
    ) -> None:
        """Detach functions of one direction ('fwd', 'bwd') or of both; with a level, only its."""

        def stays(attached: _Attached) -> bool:
            other_level = level is not None and attached.level != level
            return other_level or (attached.permanent and not including_permanent)

        for name, functions in (
            ("fwd", self._forward_functions),
            ("bwd", self._backward_functions),
        ):
            if dir in (name, "both"):
                functions[:] = [a for a in functions if stays(a)]

    def clear_context(self) -> None:
        """Forget what hook functions kept in `ctx`."""
        self.ctx = {}

    def __call__(self, x: Tensor) -> Tensor:
        if not self.observed:
            return x
        if self.shared and self.edited_or_differentiated:
            x = x.clone()
        seen = Watched(x) if not self.live else None
        y = super().__call__(x)
        self._check(x, y)
        if seen is not None and seen.changed(y):
            raise EditError(f"{self.name} is read-only: edit {self.instead} instead")
        return y

    def forward(self, x: Tensor) -> Tensor:
        """Pass the tensor by every attached function, in the order they were added."""
        for attached in list(self._forward_functions):
            given = attached.function(x, hook=self)
            if given is not None:
                self._check(x, given)
                x = given
        if self._backward_functions and x.requires_grad:
            x = x.view_as(x)
            for attached in list(self._backward_functions):
                x.register_hook(lambda grad, a=attached: a.function(grad, hook=self))
        return x

    def _check(self, before: Tensor, after: object) -> None:
        if not isinstance(after, Tensor):
            raise EditError(
                f"{self.name}: a hook must return a tensor or None; got {type(after).__name__}"
            )
        if after.shape != before.shape or after.device != before.device:
            raise EditError(
                f"{self.name} [{' '.join(self.axes)}]: expected {tuple(before.shape)} on "
                f"{before.device}; the hook returned {tuple(after.shape)} on {after.device}"
            )
        if after.dtype != before.dtype:
            raise EditError(
                f"{self.name}: expected {before.dtype}; the hook returned {after.dtype}. "
                "Return tensor.to(activation.dtype)."
            )

    def extra_repr(self) -> str:
        return f"{self.name} [{' '.join(self.axes)}]{'' if self.live else ', read-only'}"


def traced(module: nn.Module) -> bool:
    """Whether a running NNsight trace waits for, or records, this module's value.

    NNsight marks the modules it wraps; nothing is imported, and without a mark this is one look-up.
    """
    state = module.__dict__.get("__nnsight__")
    if state is None:
        return False
    interleaver, _, locations = state.active()
    if interleaver is None:
        return False
    waiting, recorded = interleaver.parked, interleaver.observers
    return any(place in waiting or place in recorded for place in locations)


class Watched:
    """Remembers a tensor well enough to tell whether it was replaced or changed in place."""

    def __init__(self, x: Tensor):
        self.tensor = x
        self.copy = x.clone() if x.is_inference() else None
        self.version = None if x.is_inference() else x._version

    def changed(self, y: Tensor) -> bool:
        """Whether `y` is anything but the tensor that went in, untouched."""
        if self.copy is not None:
            return not torch.equal(self.copy, y)
        return not _same(self.tensor, y) or self.tensor._version != self.version


def _same(x: Tensor, y: Tensor) -> bool:
    return x is y or (
        x.data_ptr() == y.data_ptr() and x.shape == y.shape and x.stride() == y.stride()
    )
