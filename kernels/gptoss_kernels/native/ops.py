"""How a kernel becomes a torch operator of the namespace `gptoss_native`."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

_LIBRARY = torch.library.Library("gptoss_native", "DEF")


def define(
    schema: str,
    body: Callable,
    *,
    fake: Callable,
    keep: Callable | None = None,
    backward: Callable | None = None,
) -> Callable:
    """Register a CPU body, its shapes and, given `keep` and `backward`, its gradient.

    The result calls the operator, or the body itself where only values are wanted: the dispatcher
    costs more than a decoded token's norm.
    """
    name = schema.split("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, body, "CPU")
    torch.library.register_fake(f"gptoss_native::{name}", fake, lib=_LIBRARY)
    if backward is not None:
        torch.library.register_autograd(
            f"gptoss_native::{name}", backward, setup_context=keep, lib=_LIBRARY
        )
    operator = getattr(torch.ops.gptoss_native, name).default

    def call(*args):
        if forward_ad._current_level >= 0:
            _refuse_tangents(name, args)
        return body(*args) if _only_values(args) else operator(*args)

    return call


def _refuse_tangents(name: str, args: tuple) -> None:
    """A kernel would drop forward-mode tangents without a word."""
    tensors = (arg for arg in args if isinstance(arg, Tensor))
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise NotImplementedError(
            f"{name}: native kernels have no forward-mode derivatives; differentiate backwards, or "
            "load the model with backend='reference'"
        )


def _only_values(args: tuple) -> bool:
    """Whether nobody differentiates, traces or stands in for these tensors, all on the CPU."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    graph = torch.is_grad_enabled()
    for arg in args:
        if not isinstance(arg, Tensor):
            continue
        if type(arg) not in (Tensor, Parameter) or not arg.is_cpu:
            return False
        if graph and arg.requires_grad:
            return False
    return True
