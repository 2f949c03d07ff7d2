"""Which bodies run: the one place where a backend is chosen.

`reference` is plain torch and defines what is right. Faster bodies (native C++ for CPUs, Triton for
GPUs) fill the same table with the same signatures.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from gptoss_kernels import attention, linear, moe, rms_norm, rope, route, route_edited, unembed

NAMES = ("native", "triton", "reference")
"""All backends, fastest first."""


class Backend(NamedTuple):
    """One body per operation; see the file of that name for formula and signature."""

    name: str
    rms_norm: Callable
    linear: Callable
    rotate: Callable
    attention: Callable
    choose: Callable
    weigh: Callable
    moe: Callable
    unembed: Callable
    route_edited: Callable = route_edited.route_edited
    """choose and weigh under a RouteProgram; the plain body reads the same tensors"""


REFERENCE = Backend(
    name="reference",
    rms_norm=rms_norm.rms_norm,
    linear=linear.linear,
    rotate=rope.rotate,
    attention=attention.attention,
    choose=route.choose,
    weigh=route.weigh,
    moe=moe.moe,
    unembed=unembed.unembed,
)

_BUILT: dict[str, Backend] = {"reference": REFERENCE}


def available(device: torch.device | str = "cpu") -> tuple[str, ...]:
    """Names of the backends that can run on `device`, fastest first."""
    torch.device(device)
    return tuple(name for name in NAMES if name in _BUILT)


def select(name: str | None = None, device: torch.device | str = "cpu") -> Backend:
    """The named backend, or the fastest one available on `device`."""
    usable = available(device)
    if name is None:
        return _BUILT[usable[0]]
    if name not in NAMES:
        raise ValueError(f"backend {name!r} is unknown; choose one of {', '.join(NAMES)}")
    if name not in usable:
        raise ValueError(
            f"backend {name!r} is not available on {device}: this build has {', '.join(usable)}. "
            "Leave backend=None to take the fastest one available."
        )
    return _BUILT[name]
