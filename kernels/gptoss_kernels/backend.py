"""Which bodies run: the one place where a backend is chosen.

`reference` is plain torch and defines what is right. Faster bodies (native C++ for CPUs, Triton for
GPUs) fill the same table with the same signatures.
"""

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import NamedTuple

import torch

from gptoss_kernels import (
    attention,
    lens,
    linear,
    moe,
    rms_norm,
    rope,
    route,
    route_edited,
    unembed,
)
from gptoss_kernels.moe import as_stored

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
    router: Callable | None = None
    """linear, choose and weigh at once, without gradients; None where they go one by one"""
    lens: Callable = lens.lens
    """what residuals say of the next token, logits never stored"""
    pack_experts: Callable = as_stored
    """`Experts` of a layer in the order that `moe` here reads, made once when a model is loaded"""
    attention_edits: Callable | None = None
    """makes what `attention` takes as `edits=`; None where it takes none"""
    expert_edits: Callable | None = None
    """makes what `moe` takes as `edits=`; None where it takes none"""


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


def available(device: torch.device | str = "cpu") -> tuple[str, ...]:
    """Names of the backends made for `device` that can run here, fastest first.

    Triton's interpreter is not among them: on a CPU `select("triton")` takes it, and nothing else.
    """
    kind = torch.device(device).type
    names = [name for name in NAMES if (name, kind) != ("triton", "cpu")]
    return tuple(name for name in names if why_missing(name, kind) is None)


def why_missing(name: str, kind: str = "cpu") -> str | None:
    """Why a backend cannot run on this kind of device, or None if it can."""
    if name == "reference":
        return None
    if name == "triton":
        return _why_no_triton(kind)
    if kind != "cpu":
        return "it runs on CPUs only"
    from gptoss_kernels.native import library

    return library.reason()


def _why_no_triton(kind: str) -> str | None:
    if find_spec("triton") is None:
        return "the package triton is not installed (pip install triton)"
    if kind == "cuda":
        return _why_too_old()
    if kind != "cpu":
        return "it runs on CUDA and ROCm GPUs"
    off = "on a CPU only Triton's interpreter runs it: set TRITON_INTERPRET=1 before Python starts"
    if os.environ.get("TRITON_INTERPRET", "0") != "1":
        return off
    from gptoss_kernels.triton.launch import interpreting

    return None if interpreting() else off


def _why_too_old() -> str | None:
    """Why the current GPU cannot run Triton's kernels, if there is one and it cannot."""
    if torch.version.hip is not None or not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    too_old = f"it needs a GPU of compute capability 8.0 or more; this one has {major}.{minor}"
    return too_old if major < 8 else None


def select(name: str | None = None, device: torch.device | str = "cpu") -> Backend:
    """The named backend, or the fastest one available on `device`."""
    kind = torch.device(device).type
    if name is None:
        return _table(available(device)[0])
    if name not in NAMES:
        raise ValueError(f"backend {name!r} is unknown; choose one of {', '.join(NAMES)}")
    if why := why_missing(name, kind):
        raise ValueError(
            f"backend {name!r} is not available on {device}: {why}. "
            f"Here are {', '.join(available(device))}; backend=None takes the fastest."
        )
    return _table(name)


def instruction_set(name: str) -> str | None:
    """The processor's instructions or the tiles a backend chose; results depend on them."""
    if name == "triton":
        from gptoss_kernels.triton import tiles

        return f"{tiles.architecture()}, tiles {tiles.digest()}"
    if name != "native":
        return None
    from gptoss_kernels.native import library

    return library.isa()


def _table(name: str) -> Backend:
    if name == "reference":
        return REFERENCE
    if name == "triton":
        from gptoss_kernels.triton.table import TRITON

        return TRITON
    from gptoss_kernels.native.table import NATIVE

    return NATIVE
