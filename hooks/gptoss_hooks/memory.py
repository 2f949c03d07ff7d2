"""How much memory is free, and refusing what would not fit before it is started."""

from pathlib import Path

import torch

GIB = 1 << 30
HEADROOM = 0.9
"""Share of the free memory that an estimate may take."""


def free_bytes(device: torch.device | str = "cpu") -> int | None:
    """Bytes that can still be taken on `device`; None where the system does not say."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    found = [each for each in (_meminfo(), _cgroup()) if each is not None]
    return min(found) if found else None


def _meminfo() -> int | None:
    path = Path("/proc/meminfo")
    if not path.exists():
        return None
    for line in path.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _cgroup() -> int | None:
    root = Path("/sys/fs/cgroup")
    try:
        limit = (root / "memory.max").read_text().strip()
        used = int((root / "memory.current").read_text())
        reclaimable = _reclaimable((root / "memory.stat").read_text())
    except OSError:
        return None
    return None if limit == "max" else int(limit) - used + reclaimable


def _reclaimable(stat: str) -> int:
    fields = dict(line.split() for line in stat.splitlines())
    return int(fields.get("inactive_file", 0)) + int(fields.get("active_file", 0))


def require(needed: int, device: torch.device | str, what: str, remedy: str) -> None:
    """Raise MemoryError when `needed` bytes do not fit; the message names both and the remedy."""
    free = free_bytes(device)
    if free is not None and needed > HEADROOM * free:
        raise MemoryError(
            f"{what} needs {in_words(needed)}, but {in_words(free)} are free on {device}. {remedy}"
        )


def in_words(size: int) -> str:
    """Bytes as a person says them: "13.8 GiB"."""
    for unit, scale in (("GiB", GIB), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} bytes"
