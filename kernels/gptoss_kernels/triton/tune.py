"""Time neighbours of the checked-in tiles on this GPU, and keep those that are faster.

Only rows, warps and stages are tried: `cols` and `inner` fix the order of sums. A candidate must
give the bits of the checked-in tile, so a tuned device computes what an untuned one does.
"""

import json
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from gptoss_kernels.moe import Experts
from gptoss_kernels.triton import tiles
from gptoss_kernels.triton.attention import attention
from gptoss_kernels.triton.lens import lens
from gptoss_kernels.triton.linear import linear
from gptoss_kernels.triton.moe import moe, pack_for_triton
from gptoss_kernels.triton.tiles import Tile

GAIN = 0.97
"""A candidate is kept if it takes less than this share of the time."""
LENGTHS = (1, 512)
"""Tokens: a step of decoding, a chunk of a prompt."""
Clock = Callable[[Callable[[], object]], float]
"""A call to its milliseconds."""


class Shapes(NamedTuple):
    """What is timed."""

    d_model: int = 2880
    d_ff: int = 2880
    heads: int = 64
    kv_heads: int = 8
    d_head: int = 64
    experts: int = 32
    k: int = 4
    vocab: int = 201088
    context: int = 4096
    window: int = 128


class Choice(NamedTuple):
    """What was found for one kernel and number of rows."""

    kernel: str
    job: str
    before: Tile
    after: Tile
    milliseconds: tuple[float, float]
    """with the checked-in tile, with the chosen one"""


def tune(shapes: Shapes, device: torch.device, clock: Clock | None = None) -> Iterator[Choice]:
    """Go through all kernels, yielding what was chosen; `save` keeps it."""
    clock = clock or _milliseconds
    for name, call in jobs(shapes, device):
        for kernel, rows in asked(call).items():
            yield _best(kernel, rows, tiles.column(kernel, device), name, call, clock)


def save(choices: list[Choice]) -> None:
    """Write the user's table of this device, whole or not at all."""
    path = tiles.own_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = json.loads(path.read_text()) if path.exists() else {}
    own: dict[str, list[list]] = {}
    for choice in choices:
        before = tiles.entries(choice.kernel, tiles.column(choice.kernel))
        table = own.setdefault(choice.kernel, [list(entry) for entry in before])
        for entry in table:
            if Tile(*entry[1:]) == choice.before:
                entry[1:] = choice.after
    stored[tiles.device_name()] = own
    part = path.with_suffix(".part")
    part.write_text(json.dumps(stored, indent=1))
    os.replace(part, path)


def jobs(s: Shapes, device: torch.device) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """(name, call) of every operation at these shapes, in bfloat16, weights drawn."""
    rng = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng).bfloat16().to(device)

    query, out, up = (draw(s.heads * s.d_head, s.d_model), draw(s.d_model, s.heads * s.d_head),
                      draw(s.vocab, s.d_model))  # fmt: skip
    experts = pack_for_triton(_experts(s, device))
    for n in LENGTHS:
        x, z = draw(1, n, s.d_model), draw(1, n, s.heads * s.d_head)
        yield f"queries of {n}", lambda x=x: linear(x, query)
        yield f"heads of {n}", lambda z=z: linear(z, out)
        scores = torch.randn(1, n, s.experts, generator=rng).to(device)
        chosen = scores.topk(s.k)
        weights = chosen.values.softmax(-1)
        route = (chosen.indices, weights)
        yield f"experts of {n}", lambda x=x, route=route: moe(x, *route, experts)
        keys = torch.arange(s.context + n, device=device)[None]
        q = draw(1, n, s.heads, s.d_head)
        k, v = (draw(1, s.context + n, s.kv_heads, s.d_head) for _ in range(2))
        inputs = (q, k, v, draw(s.heads), keys[:, -n:], keys)
        for window in (None, s.window):
            how = f"attention of {n}" + (" in a window" if window else "")
            yield how, lambda inputs=inputs, w=window: attention(*inputs, window=w)
    x = draw(1, LENGTHS[-1], s.d_model)
    yield "unembedding of 1", lambda: linear(x[:, :1], up)
    yield f"lens of {LENGTHS[-1]}", lambda: lens(x, up).logits


def asked(call: Callable[[], object]) -> dict[str, int]:
    """Which tiles a call asks for, and the rows it names."""
    found: dict[str, int] = {}
    plain = tiles.choose

    def watch(kernel: str, rows: int, column: str) -> Tile:
        found[kernel] = max(rows, found.get(kernel, 0))
        return plain(kernel, rows, column)

    watch.cache_clear = plain.cache_clear  # pyright: ignore[reportFunctionMemberAccess]
    tiles.choose = watch  # pyright: ignore[reportAttributeAccessIssue]
    try:
        call()
    finally:
        tiles.choose = plain
    return found


def neighbours(tile: Tile) -> list[Tile]:
    """The same sums with other rows, warps and stages."""
    sizes = {tile.rows, tile.rows // 2, tile.rows * 2}
    return [
        tile._replace(rows=rows, warps=warps, stages=stages)
        for rows in sorted(sizes)
        for warps in (tile.warps // 2, tile.warps, tile.warps * 2)
        for stages in range(max(1, tile.stages - 1), tile.stages + 2)
        if rows >= 16 and 1 <= warps <= 8
    ]


def _best(
    kernel: str, rows: int, column: str, job: str, call: Callable[[], Tensor], clock: Clock
) -> Choice:
    before = tiles.choose(kernel, rows, column)
    wanted, base = call().clone(), clock(call)
    best, least = before, base
    for candidate in neighbours(before):
        table = [
            [most, *(candidate if Tile(*sizes) == before else sizes)]
            for most, *sizes in tiles.entries(kernel, column)
        ]
        with tiles.trying(kernel, column, table):
            time = _time(call, wanted, clock)
        if time is not None and time < GAIN * base and time < least:
            best, least = candidate, time
    return Choice(kernel, job, before, best, (base, least))


def _time(call: Callable[[], Tensor], wanted: Tensor, clock: Clock) -> float | None:
    """None where a tile does not fit this device, or changes a bit."""
    from triton.runtime.errors import OutOfResources

    try:
        return clock(call) if torch.equal(call(), wanted) else None
    except OutOfResources:
        return None


def _milliseconds(call: Callable[[], object]) -> float:
    from triton.testing import do_bench

    return float(do_bench(call, quantiles=[0.5]))  # pyright: ignore[reportArgumentType]


def _experts(s: Shapes, device: torch.device) -> Experts:
    """Any bytes are weights; scales near 1 keep them finite."""

    def half(rows: int, inner: int) -> tuple[Tensor, Tensor, Tensor]:
        shape = (s.experts, rows, inner // 32)
        blocks = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, device=device)
        scales = torch.randint(118, 122, shape, dtype=torch.uint8, device=device)
        return blocks, scales, torch.zeros(s.experts, rows, device=device)

    return Experts(*half(2 * s.d_ff, s.d_model), *half(s.d_model, s.d_ff))
