"""`lens` in Triton; formula and signature are those of `gptoss_kernels.lens`.

Logits exist only in registers. The vocabulary is read in stretches of one length and a row's
numbers do not depend on its company; of equal logits the lower token leads. Largest logits, target
logit and rank are exactly those of the whole row of `linear` in float32. More than `MOST` tokens a
row are looked for in a second reading, over tiles of logits. With targets the host waits once: one
beyond the vocabulary raises, and only the device knows it.
"""

import torch
import triton
from jaxtyping import Float, Int
from torch import Tensor

from gptoss_kernels.lens import Lens, checked
from gptoss_kernels.triton.launch import launch
from gptoss_kernels.triton.lens_kernels import lens_kernel, merge_kernel, target_kernel
from gptoss_kernels.triton.linear import WIDE, check, kind, linear, options, terms
from gptoss_kernels.triton.tiles import Tile, tile

TILES = 12
"""Tiles of the vocabulary in a stretch: 131 programs read gpt-oss's for one tile of entries."""
COLUMNS = 2048
"""Most residuals at a time: at most 84 MiB of sums over tiles, and 2 MiB for each token kept."""
MOST = 32
"""Most tokens a kernel keeps."""


def lens(
    x: Float[Tensor, "layer row d_model"],
    weight: Float[Tensor, "vocab d_model"],
    *,
    k: int = 5,
    targets: Int[Tensor, " row"] | None = None,
    final: Float[Tensor, "row d_model"] | None = None,
) -> Lens:
    """Read normed residuals out through the unembedding; of equal logits the lower token leads."""
    asked = targets is not None
    targets = checked(x, weight, k, targets)
    check("lens", x=x, weight=weight, final=final)
    if final is not None and final.shape != x.shape[1:]:
        raise ValueError(f"lens: expected final {tuple(x.shape[1:])}; got {tuple(final.shape)}")
    if final is not None and final.dtype != x.dtype:
        x, final = x.float(), final.float()
    with torch.no_grad():
        read = _in_parts(x, weight.contiguous(), min(k, MOST), targets if asked else None, final)
        if k <= MOST:
            return read
        tokens, logits = _largest(x, weight, k)
        return read._replace(tokens=tokens, logits=logits)


def _in_parts(
    x: Tensor, weight: Tensor, k: int, targets: Tensor | None, final: Tensor | None
) -> Lens:
    """So many rows and layers at a time as tiles and memory hold."""
    sizes = tile(kind("lens", x, weight), x.shape[0] * x.shape[1], x.device)
    height = max(1, len(x) if final is None else sizes.rows - 1)
    step = max(1, COLUMNS // max(1, min(len(x), height)))
    down = []
    for layers in x.split(height):
        across = []
        for start in range(0, max(1, x.shape[1]), step):
            rows = slice(start, start + step)
            wanted, ends = (None if each is None else each[rows] for each in (targets, final))
            across.append(_read(layers[:, rows], weight, k, wanted, ends, sizes))
        down.append(Lens(*(torch.cat(column, 1) for column in zip(*across, strict=True))))
    return Lens(*(torch.cat(column) for column in zip(*down, strict=True)))


def _read(
    x: Tensor, weight: Tensor, k: int, targets: Tensor | None, final: Tensor | None, sizes: Tile
) -> Lens:
    """Everything about some rows, in three launches."""
    (layers, rows, inner), vocab = x.shape, len(weight)
    x = x if final is None else torch.cat([x, final[None]])
    group = 1 if final is None else triton.next_power_of_2(len(x))
    wide = triton.cdiv((rows if group > 1 else len(x) * rows) * group, sizes.rows)
    columns, stretch = wide * sizes.rows, TILES * sizes.cols
    tiles, stretches = triton.cdiv(vocab, sizes.cols), triton.cdiv(vocab, stretch)
    kept = triton.next_power_of_2(k)
    split, real = terms(x), {"dtype": torch.float32, "device": x.device}
    sums = torch.empty(3 if group == 1 else 6, tiles, columns, **real)
    values = torch.empty(stretches, kept, columns, **real)
    tokens = torch.empty_like(values, dtype=torch.int32)
    target = found = ahead = None
    if targets is not None:
        target = _in_columns(targets, len(x), group, columns)
        found, ahead = torch.empty(columns, **real), tokens.new_empty(tiles, columns)
        _start(target_kernel, (wide,), sizes, split, weight, target, found, len(x), rows, inner,
               split[0].numel(), GROUP=group)  # fmt: skip
    _start(lens_kernel, (wide, stretches), sizes, split, weight, target, found, sums, values,
           tokens, ahead, len(x), rows, vocab, inner, split[0].numel(), k, stretch,
           GROUP=group, KEPT=kept)  # fmt: skip
    statistics = torch.full((3, layers, rows), torch.nan, **real)
    rank = torch.full((layers, rows), -1, device=x.device)
    best = torch.empty(layers, rows, k, **real)
    best_tokens = torch.empty_like(best, dtype=torch.int64)
    launch(merge_kernel, (layers * rows,), sums, values, tokens, ahead, statistics, rank, best,
           best_tokens, layers, rows, columns, tiles, stretches, k, GROUP=group,
           TILES=triton.next_power_of_2(tiles), STRETCHES=triton.next_power_of_2(stretches),
           KEPT=kept, num_warps=8)  # fmt: skip
    own = statistics.new_full((layers, rows), torch.nan)
    if targets is not None and found is not None:
        rank = torch.where(targets >= 0, rank, -1)
        own = _of_columns(found, layers, rows, group)
    return Lens(best_tokens, best, statistics[0], statistics[1], own, rank, statistics[2])


def _in_columns(targets: Tensor, layers: int, group: int, columns: int) -> Tensor:
    """int32, the target of each column of the kernels; -1 behind the last."""
    each = targets.repeat_interleave(group) if group > 1 else targets.repeat(layers)
    return torch.nn.functional.pad(each.int(), (0, columns - len(each)), value=-1)


def _of_columns(found: Tensor, layers: int, rows: int, group: int) -> Tensor:
    """[layer, row] of what there is a column."""
    if group == 1:
        return found[: layers * rows].view(layers, rows)
    return found[: rows * group].view(rows, group)[:, :layers].T


def _start(kernel, grid: tuple, sizes: Tile, x: Tensor, weight: Tensor, *args, **meta) -> None:
    launch(kernel, grid, x, weight, *args, TERMS=len(x), EVEN=weight.shape[1] % sizes.inner == 0,
           BM=sizes.rows, BN=sizes.cols, BK=sizes.inner, **options(sizes, x.device),
           **meta)  # fmt: skip


def _largest(x: Tensor, weight: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Tokens and logits [layer, row, k] by sorting tiles of logits."""
    values = x.new_empty((*x.shape[:2], 0), dtype=torch.float32)
    tokens = torch.empty(*x.shape[:2], 0, dtype=torch.int64, device=x.device)
    for start in range(0, len(weight), 2 * WIDE):
        logits = linear(x, weight[start : start + 2 * WIDE], dtype=torch.float32)
        here = torch.arange(start, start + logits.shape[-1], device=x.device)
        values = torch.cat([values, logits], -1)
        tokens = torch.cat([tokens, here.expand_as(logits)], -1)
        values, places = torch.sort(values, dim=-1, descending=True, stable=True)
        values, tokens = values[..., :k], tokens.gather(-1, places[..., :k])
    return tokens, values
