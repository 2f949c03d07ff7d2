"""How much memory a model takes, estimated from its config before anything is read.

Weights on the CPU are mapped from files: they count as what must stay in the page cache for a
forward pass not to read the disk again for every token. On a GPU experts lie as Triton's kernels
read them, inputs padded to 128, and the cache as a captured decoding step writes it: room for the
whole context, some slack behind each window.
"""

from __future__ import annotations

import math

import torch

from gptoss_hooks.memory import free_memory, in_words, installed_memory
from gptoss_workbench.checkpoint import hf_layout
from gptoss_workbench.checkpoint.errors import NotEnoughMemory
from gptoss_workbench.config import Config
from gptoss_workbench.fixed_cache import SLACK

CHUNK_TOKENS = 512
"""Tokens of a prompt taken together, for the estimate of activations."""
RUNTIME = 700_000_000
"""Bytes of a GPU that its driver's context and loaded kernels take; an allowance, not measured."""
GROUP = 128
"""Inputs of an expert's row that Triton's kernels read together."""


def memory_needed(
    config: Config, *, dtype_bytes: int = 2, context: int = 4096, gpu: bool = False
) -> dict[str, int]:
    """Bytes to run one sequence of `context` tokens, by part, with their sum as "total".

    memory_needed(GPT_OSS_20B)["total"] / 1e9   # 14.3

    Args:
        dtype_bytes: of activations and cache, 2 for bfloat16, 4 for float32; weights stay.
        gpu: with the Triton backend on a GPU; else mapped on a CPU.
    """
    parts = dict.fromkeys(("dense", "experts", "kv_cache", "activations", "runtime"), 0)
    for name, spec in hf_layout.expected(config).items():
        parts["experts" if ".experts." in name else "dense"] += spec.nbytes
    if gpu:
        parts["experts"] += _padding(config)
        parts["runtime"] = RUNTIME
    per_place = kv_bytes_per_token(config, dtype_bytes=dtype_bytes) // config.num_hidden_layers
    kinds: set[str] = set()
    for kind in config.layer_types:
        reach = config.sliding_window - 1 + SLACK if gpu else config.sliding_window
        kept = min(context, reach) if kind == "sliding_attention" else context
        parts["kv_cache"] += kept * per_place
        if gpu and kind not in kinds:
            parts["kv_cache"] += 8 * kept  # positions, once for all layers of a kind
            kinds.add(kind)
    parts["activations"] = min(context, CHUNK_TOKENS) * _per_token(config, dtype_bytes)
    return parts | {"total": sum(parts.values())}


def _padding(config: Config) -> int:
    """Bytes that experts grow by when Triton's kernels get them."""
    grown = 0
    for name, spec in hf_layout.expected(config).items():
        if name.endswith(("proj_blocks", "proj_scales")):
            *rows, width = spec.shape[:3]
            blocks = -(-32 * width // GROUP) * 4 - width
            grown += math.prod(rows) * blocks * (16 if name.endswith("blocks") else 1)
    return grown


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
    gpu = device.type != "cpu"
    needed = memory_needed(config, dtype_bytes=dtype_bytes, context=context, gpu=gpu)
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
            raise NotEnoughMemory(_refusal(needed, size, f"{in_words(room)} {kind}", device))


def _per_token(config: Config, dtype_bytes: int) -> int:
    """Activations of one token at the widest place: float32 logits, residual, chosen experts."""
    experts = config.num_experts_per_tok * (3 * config.intermediate_size + config.hidden_size)
    return 4 * config.vocab_size + dtype_bytes * (8 * config.hidden_size + experts)


def _refusal(needed: dict[str, int], size: int, room: str, device: torch.device) -> str:
    told = {name: size for name, size in needed.items() if name != "total" and size}
    parts = ", ".join(f"{name} {in_words(size)}" for name, size in told.items())
    return (
        f"not enough memory on {device}: about {in_words(size)} needed, only {room} "
        f"(the estimate: {parts}, in all {in_words(needed['total'])}); take a smaller model, "
        "a shorter context, bfloat16 rather than float32, or another device, or close what else "
        "runs on this one"
    )
