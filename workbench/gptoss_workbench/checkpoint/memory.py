"""How much memory a model takes, estimated from its config before anything is read.

Weights on the CPU are mapped from files: they count as what must stay in the page cache for a
forward pass not to read the disk again for every token.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from gptoss_workbench.checkpoint import hf_layout
from gptoss_workbench.checkpoint.errors import NotEnoughMemory
from gptoss_workbench.config import Config

CHUNK_TOKENS = 512
"""Tokens of a prompt taken together, for the estimate of activations."""

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


def memory_needed(config: Config, *, dtype_bytes: int = 2, context: int = 4096) -> dict[str, int]:
    """Bytes to run one sequence of `context` tokens, by part, with their sum as "total".

    memory_needed(GPT_OSS_20B)["total"] / 1e9   # 14.3

    Args:
        dtype_bytes: of activations and cache, 2 for bfloat16, 4 for float32; weights stay.
    """
    parts = dict.fromkeys(("dense", "experts", "kv_cache", "activations"), 0)
    for name, spec in hf_layout.expected(config).items():
        parts["experts" if ".experts." in name else "dense"] += spec.nbytes
    per_layer = kv_bytes_per_token(config, dtype_bytes=dtype_bytes) // config.num_hidden_layers
    for kind in config.layer_types:
        kept = min(context, config.sliding_window) if kind == "sliding_attention" else context
        parts["kv_cache"] += kept * per_layer
    parts["activations"] = min(context, CHUNK_TOKENS) * _per_token(config, dtype_bytes)
    return parts | {"total": sum(parts.values())}


def kv_bytes_per_token(config: Config, *, dtype_bytes: int = 2) -> int:
    """Keys and values of one token in all layers; sliding layers forget it after their window."""
    heads = config.num_key_value_heads * config.head_dim
    return 2 * heads * dtype_bytes * config.num_hidden_layers


def check_memory(
    config: Config,
    *,
    dtype_bytes: int = 2,
    context: int = 4096,
    device: str | torch.device = "cpu",
    available: int | None = None,
) -> None:
    """Raise NotEnoughMemory where the estimate exceeds what there is.

    On the CPU weights are mapped, so all of it is held against the memory installed, and only cache
    and activations against the memory free now: the 20b opens on a 16 GB machine with a browser
    running, which the weights then push out of the way. On a GPU all of it must be free.

    Args:
        available: bytes to hold the estimate against instead of asking the machine. Where that
            does not tell, nothing is checked.
    """
    device = torch.device(device)
    needed = memory_needed(config, dtype_bytes=dtype_bytes, context=context)
    allocated = needed["kv_cache"] + needed["activations"]
    if available is not None:
        limits = [(needed["total"], available, "available")]
    elif device.type == "cpu":
        limits = [(needed["total"], installed_memory(), "installed")]
        limits += [(allocated, free_memory(), "free")]
    else:
        limits = [(needed["total"], free_memory(device), "free")]
    for size, room, kind in limits:
        if room is not None and size > room:
            raise NotEnoughMemory(_refusal(needed, size, f"{gigabytes(room)} {kind}", device))


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


def gigabytes(size: float) -> str:
    """A size in words."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _per_token(config: Config, dtype_bytes: int) -> int:
    """Activations of one token at the widest place: float32 logits, residual, chosen experts."""
    experts = config.num_experts_per_tok * (3 * config.intermediate_size + config.hidden_size)
    return 4 * config.vocab_size + dtype_bytes * (8 * config.hidden_size + experts)


def _refusal(needed: dict[str, int], size: int, room: str, device: torch.device) -> str:
    parts = ", ".join(f"{name} {gigabytes(n)}" for name, n in needed.items() if name != "total")
    return (
        f"not enough memory on {device}: about {gigabytes(size)} needed, only {room} "
        f"(the estimate: {parts}, in all {gigabytes(needed['total'])}); take a smaller model, "
        "a shorter context, bfloat16 rather than float32, or another device, or close what else "
        "runs on this one"
    )


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
