"""How a kernel becomes a torch operator of the namespace `gptoss_native`."""

from collections.abc import Callable

import torch
from torch._ops import OpOverload

_LIBRARY = torch.library.Library("gptoss_native", "DEF")


def define(
    schema: str,
    body: Callable,
    *,
    fake: Callable,
    keep: Callable | None = None,
    backward: Callable | None = None,
) -> OpOverload:
    """Register a CPU body, its shapes and, given `keep` and `backward`, its gradient."""
    name = schema.split("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, body, "CPU")
    torch.library.register_fake(f"gptoss_native::{name}", fake, lib=_LIBRARY)
    if backward is not None:
        torch.library.register_autograd(
            f"gptoss_native::{name}", backward, setup_context=keep, lib=_LIBRARY
        )
    return getattr(torch.ops.gptoss_native, name).default
