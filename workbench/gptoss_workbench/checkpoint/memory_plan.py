"""What fits where: memory by context length, and the longest context a device holds."""

from __future__ import annotations

from collections.abc import Sequence

from gptoss_hooks.memory import in_words
from gptoss_workbench.checkpoint.memory import memory_needed
from gptoss_workbench.config import Config
from gptoss_workbench.table import Table

CONTEXTS = (512, 2048, 4096, 8192, 16384, 32768, 65536, 131072)


def memory_plan(
    config: Config,
    *,
    contexts: Sequence[int] | None = None,
    dtype_bytes: int = 2,
    room: int | None = None,
    gpu: bool = False,
) -> Table:
    """Memory to run one sequence, a row a context length, in GB (1e9 bytes).

    memory_plan(GPT_OSS_20B, room=16_000_000_000)

    Args:
        contexts: tokens; None is 512 up to the model's longest.
        dtype_bytes: of activations and cache, 2 for bfloat16, 4 for float32; weights stay packed.
        room: bytes of the device; adds the column `fits`, and a note with the longest context.
        gpu: with the Triton backend on a GPU; else mapped on a CPU.

    Raises ValueError for a context the model does not have.
    """
    most = config.max_position_embeddings
    contexts = [n for n in CONTEXTS if n <= most] if contexts is None else list(contexts)
    if bad := [n for n in contexts if not 1 <= n <= most]:
        raise ValueError(f"memory_plan: contexts are 1 to {most:,} tokens; got {bad}")
    rows = [memory_needed(config, dtype_bytes=dtype_bytes, context=n, gpu=gpu) for n in contexts]
    columns = {"context": contexts} | {
        part: [row[part] / 1e9 for row in rows] for part in (rows[0] if rows else ())
    }
    mapped = "weights are mapped from files on a CPU: shared, and evicted under pressure"
    padded = (
        "on a GPU: experts padded to 128 inputs, runtime is an allowance for driver and kernels"
    )
    notes = [padded if gpu else mapped]
    if room is not None:
        columns["fits"] = [row["total"] <= room for row in rows]
        notes.append(_longest_told(config, dtype_bytes, room, gpu))
    return Table(
        columns,  # pyright: ignore[reportArgumentType]
        title=f"Memory for one sequence, activations of {dtype_bytes} bytes",
        source="sizes of all tensors, keys and values kept a layer, the widest place of a chunk",
        units={"context": "tokens"} | dict.fromkeys(list(columns)[1:7], "GB"),
        notes=notes,
    )


def longest_context(config: Config, room: int, *, dtype_bytes: int = 2, gpu: bool = False) -> int:
    """The most tokens of one sequence that fit into `room` bytes; 0 if not one does."""

    def fits(n: int) -> bool:
        needed = memory_needed(config, dtype_bytes=dtype_bytes, context=n, gpu=gpu)
        return needed["total"] <= room

    low, high = 0, config.max_position_embeddings
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _longest_told(config: Config, dtype_bytes: int, room: int, gpu: bool) -> str:
    longest = longest_context(config, room, dtype_bytes=dtype_bytes, gpu=gpu)
    if longest:
        return f"{in_words(room)} hold a context of {longest:,} tokens"
    least = memory_needed(config, dtype_bytes=dtype_bytes, context=1, gpu=gpu)["total"]
    return f"{in_words(room)} do not hold the model: {in_words(least)} are needed for one token"
