"""Kernels of others beside ours: compiled and counted in the same way, not part of this project.

Counted with these tools and Triton 3.9 in September 2026 from openai/gpt-oss and triton_kernels, at
gpt-oss's shapes; None where a figure does not apply. Their code is neither copied nor fetched here.
"""

from typing import NamedTuple


class Peer(NamedTuple):
    """One kernel of others on one target."""

    name: str
    target: str
    warps: int
    registers: int
    stack: int
    shared: int
    """KB per block"""
    loop: int
    """instructions of one turn of the main loop, one warp"""
    mma: str
    per_unit: float | None
    """warp instructions per 64 × 64 scores, or lane instructions per MXFP4 weight"""
    note: str = ""


ATTENTION = "attention of openai/gpt-oss, 64 × 64"
EXPERTS = "matmul of triton_kernels with SwiGLU"
PEERS = (
    Peer(ATTENTION, "sm_80", 4, 32, 6688, 41, 9635, "32 HMMA", 38540, "5378 spill instructions"),
    Peer(ATTENTION, "sm_90", 4, 127, 0, 82, 3264, "4 HGMMA", 13056, "P·V without matrix units"),
    Peer(ATTENTION, "sm_100", 4, 137, 0, 74, 6299, "8 UTCHMMA", None, "P·V without matrix units"),
    Peer(ATTENTION, "sm_120", 4, 140, 0, 74, 3339, "32 HMMA", 13356, "P·V without matrix units"),
    Peer(f"{EXPERTS}, 16 × 256 × 128", "sm_80", 1, 128, 4160, 82, 8186, "256 HMMA", 8.0,
         "3011 spill instructions"),
    Peer(f"{EXPERTS}, 128 × 256 × 128", "sm_80", 8, 32, 5432, 99, 5546, "256 HMMA", None, ""),
    Peer(f"{EXPERTS}, 16 × 128 × 128", "sm_90", 4, 154, 0, 42, 514, "16 HGMMA", 4.0, ""),
    Peer(f"{EXPERTS}, 128 × 256 × 128", "sm_90", 8, 255, 64, 83, 546, "16 HGMMA", None, ""),
    Peer(f"{EXPERTS}, 16 × 256, persistent", "sm_100", 8, 255, 0, 34, 447, "16 UTCHMMA", None, ""),
    Peer(f"{EXPERTS}, 128 × 256, persistent", "sm_120", 12, 168, 656, 83, 3738, "256 HMMA", None,
         "212 spill instructions"),
    Peer(f"{EXPERTS}, 128 × 256", "gfx942", 8, 256, 232, 51, 703, "128 MFMA", None, ""),
)  # fmt: skip
