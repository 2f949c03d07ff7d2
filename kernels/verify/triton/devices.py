"""Data-sheet figures of the devices kernels are judged for, as formulas use them."""

from typing import NamedTuple

from triton.backends.compiler import GPUTarget


class Device(NamedTuple):
    """One device of an architecture, per SM (compute unit) unless it says otherwise."""

    name: str
    arch: int | str
    """as Triton's target has it"""
    shared: int
    """bytes of shared memory"""
    shared_block: int
    """bytes that one block may have"""
    warps: int
    """most resident warps"""
    blocks: int
    """most resident blocks"""
    units: int
    """SMs of the device"""
    bandwidth: float
    """bytes a second, whole device"""
    clock: float
    """Hz"""
    issue: float
    """warp instructions a clock"""
    alu: float
    """integer and logic instructions a clock"""
    fp: float
    """float instructions a clock"""
    mufu: float
    """exp2, rcp, sqrt ... a clock"""
    lsu: float
    """loads and stores a clock, of shared or global memory"""
    mma: float
    """dense bfloat16 FLOP a clock"""
    warp: int = 32
    """lanes of a warp"""
    registers: int = 65536
    """32-bit registers"""


TARGETS = {
    "sm_80": Device("A100 80 GB", 80, 167936, 166912, 64, 32, 108, 2.04e12, 1.41e9,
                    4, 2, 2, 0.5, 1, 2048),
    "sm_86": Device("RTX 3090", 86, 102400, 101376, 48, 16, 82, 0.94e12, 1.7e9,
                    4, 2, 4, 0.5, 1, 512),
    "sm_89": Device("RTX 4090", 89, 102400, 101376, 48, 24, 128, 1.01e12, 2.5e9,
                    4, 2, 4, 0.5, 1, 512),
    "sm_90": Device("H100 SXM", 90, 233472, 232448, 64, 32, 132, 3.35e12, 1.755e9,
                    4, 2, 4, 0.5, 1, 4096),
    "sm_100": Device("B200", 100, 233472, 232448, 64, 32, 148, 8.0e12, 1.85e9,
                     4, 2, 4, 0.5, 1, 8192),
    "sm_120": Device("RTX 5090", 120, 102400, 101376, 48, 24, 170, 1.79e12, 2.4e9,
                     4, 4, 4, 0.5, 1, 512),
    "gfx942": Device("MI300X", "gfx942", 65536, 65536, 32, 32, 304, 5.3e12, 2.1e9,
                     4, 1, 1, 0.25, 0.5, 2048, 64, 131072),
}  # fmt: skip
GATED = ("sm_80", "sm_90", "sm_100", "sm_120", "gfx942")
"""Targets that the compile gate judges"""
FITTED = {"sm_86": "sm_80", "sm_89": "sm_80"}
"""Targets without tiles of their own, and whose they take: the kernels must compile and fit"""
EMULATED = ("sm_80", "sm_86", "sm_89", "sm_120")
"""Targets whose PTX runs on the CPU"""


def target(name: str) -> GPUTarget:
    """Triton's name of a target."""
    if name not in TARGETS:
        raise ValueError(f"target: expected one of {', '.join(TARGETS)}; got {name}")
    device = TARGETS[name]
    return GPUTarget("hip" if isinstance(device.arch, str) else "cuda", device.arch, device.warp)
