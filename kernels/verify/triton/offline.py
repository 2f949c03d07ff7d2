"""Kernels compiled for a target this machine does not have, through the ordinary host code.

    with compiling("sm_90") as launches:
        rms_norm(x, weight)             # compiles, nothing runs; `launches` has what was compiled

    with executing("sm_80"):
        y = rms_norm(x, weight)         # the PTX of sm_80 runs on the CPU tensors

A stand-in for the driver answers for the target, so tiles, specialisation on arguments and options
are those of the target. The process must not have set TRITON_INTERPRET=1.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import devices
import ptx_machine
import torch
import triton
from triton.runtime.jit import JITFunction

from gptoss_kernels.triton.launch import interpreting


class Launch(NamedTuple):
    """One start of a kernel: what was compiled, and what it would have been given."""

    kernel: Any
    """triton's CompiledKernel: `.asm`, `.metadata`, `.src`"""
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    """by the names of the Python function, constants included"""

    @property
    def name(self) -> str:
        """Of the `@triton.jit` function."""
        return self.kernel.src.fn.fn.__name__

    @property
    def parameters(self) -> list:
        """The arguments that the compiled kernel takes, in its order."""
        signature = self.kernel.src.signature
        return [
            each for name, kind in signature.items() for each in _passed(kind, self.arguments[name])
        ]


@contextmanager
def compiling(target: str) -> Iterator[list[Launch]]:
    """Every launch becomes a compile for `target`."""
    launches: list[Launch] = []
    with _standing_in(target, launches.append):
        yield launches


@contextmanager
def idling(target: str) -> Iterator[None]:
    """Launches do nothing; the host code sees `target`."""
    with _standing_in(target, None):
        yield


@contextmanager
def executing(
    target: str,
    how: ptx_machine.Run = ptx_machine.Run(),  # noqa: B008
    changed: Callable[[str], str] = str,
) -> Iterator[list[Launch]]:
    """Every launch is compiled for `target` and run on the CPU; `changed` may alter its PTX."""
    if target not in devices.EMULATED:
        known = ", ".join(devices.EMULATED)
        raise ValueError(f"executing: expected one of {known}; got {target}")
    launches: list[Launch] = []

    def run(launch: Launch) -> None:
        launches.append(launch)
        kernel = launch.kernel
        ptx_machine.run(
            changed(kernel.asm["ptx"]),
            launch.grid,
            launch.parameters,
            32 * kernel.metadata.num_warps,
            kernel.metadata.shared,
            how,
        )

    with _standing_in(target, run):
        yield launches


def _passed(kind, value) -> list:
    """What of one Python argument the kernel takes; constants are compiled in."""
    if isinstance(kind, tuple):
        return [each for pair in zip(kind, value, strict=True) for each in _passed(*pair)]
    if kind == "constexpr":
        return []
    if kind.startswith("tensordesc"):
        raise NotImplementedError("offline: tensor descriptors cannot be run")
    return [value]


@contextmanager
def _standing_in(target: str, started: Callable[[Launch], None] | None) -> Iterator[None]:
    if interpreting():
        raise RuntimeError(
            "offline: triton was imported with TRITON_INTERPRET=1; use TRITON_INTERPRET=0"
        )
    plain_run, driver = JITFunction.run, triton.runtime.driver
    plain_driver = driver._active

    def run(self, *args, grid: Any, warmup, **kwargs):
        if started is None:
            return None
        kernel = plain_run(self, *args, grid=grid, warmup=True, **kwargs)
        names = self.signature.parameters
        given = {name: value for name, value in kwargs.items() if name in names}
        bound = self.signature.bind(*args, **given)
        bound.apply_defaults()
        blocks: Any = grid(bound.arguments) if callable(grid) else grid
        started(Launch(kernel, tuple(blocks), dict(bound.arguments)))
        return kernel

    driver.set_active(_Driver(target))  # pyright: ignore[reportArgumentType]
    JITFunction.run = run
    try:
        yield
    finally:
        JITFunction.run, driver._active = plain_run, plain_driver


class _Driver:
    """What specialisation and compilation ask a driver for."""

    def __init__(self, name: str) -> None:
        self.target, self.device = devices.target(name), devices.TARGETS[name]
        self.number = 1 + list(devices.TARGETS).index(name)
        self.utils = SimpleNamespace(get_device_properties=self._properties)

    def _properties(self, device: int) -> dict[str, int]:
        return {
            "max_shared_mem": self.device.shared_block,
            "multiprocessor_count": self.device.units,
        }

    def get_current_target(self):
        return self.target

    def get_current_device(self) -> int:
        """Compiled kernels are kept per device."""
        return self.number

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")
