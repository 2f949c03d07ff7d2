"""How much memory there is, and refusing what would not fit before it is started."""

import os
import re
from pathlib import Path

import torch

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
HEADROOM = 0.9
"""Share of the free memory that an estimate may take."""


def installed_memory() -> int | None:
    """Bytes of main memory this process may ever have; None if unknown."""
    known = [_physical(), _cgroup("max")]
    return min((size for size in known if size is not None), default=None)


def free_memory(device: str | torch.device = "cpu") -> int | None:
    """Bytes that can still be used on a device, page cache counted as free; None if unknown."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    known = [_meminfo("MemAvailable"), _cgroup_free()]
    return min((size for size in known if size is not None), default=None)


def require(needed: int, device: torch.device | str, what: str, remedy: str) -> None:
    """Raise MemoryError when `needed` bytes do not fit; the message names both and the remedy."""
    free = free_memory(device)
    if free is not None and needed > HEADROOM * free:
        raise MemoryError(
            f"{what} needs {in_words(needed)}, but {in_words(free)} are free on {device}. {remedy}"
        )


def in_words(size: float) -> str:
    """A size in words."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def in_bytes(words: str) -> int:
    """A size such as "16GB" (1e9 bytes each) or "16 GiB" (2**30) as bytes."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", words, re.IGNORECASE)
    if found is None:
        raise ValueError(f"a size is a number and a unit, as 16GB or 80GiB; got {words!r}")
    number, prefix, binary = found.groups()
    power = " KMGT".index(prefix.upper() or " ")
    return round(float(number) * (1024 if binary else 1000) ** power)


def _physical() -> int | None:
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):  # Windows
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _meminfo(field: str) -> int | None:
    if not MEMINFO.exists():
        return None
    rows = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
    return int(rows[field].split()[0]) * 1024 if field in rows else None


def _cgroup(name: str) -> int | None:
    """A number that a container's control group states; "max" is no limit."""
    file = CGROUP / f"memory.{name}"
    text = file.read_text().strip() if file.exists() else "max"
    return None if text == "max" else int(text)


def _cgroup_free() -> int | None:
    """What a container may still use; its page cache can be given back, so it counts as free."""
    limit, current, stat = _cgroup("max"), _cgroup("current"), CGROUP / "memory.stat"
    if limit is None or current is None or not stat.exists():
        return None
    fields = dict(line.split() for line in stat.read_text().splitlines())
    cache = int(fields.get("inactive_file", 0)) + int(fields.get("active_file", 0))
    return limit - current + cache
