"""Tiles chosen offline: candidates are compiled, gated and ranked by the yardstick.

    python kernels/verify/triton/choose.py moe                     every target
    python kernels/verify/triton/choose.py moe sm_80 sm_120 --cols 64,128 --warps 4,8 --dry

The cases that use a table of `gptoss_kernels/triton/tiles/<file>.json` say what is compiled. For
each target every bucket of rows gets the tile with the largest share of the roofline among those
that pass the gate; `cols` and `inner`, which fix the order of sums, are the same in all buckets.
The interpreter's column and buckets without a case stay as they are.
"""

import argparse
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from math import prod
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

os.environ["TRITON_INTERPRET"] = "0"  # read when triton is first imported, next

import devices
import gate
import offline
from case import Case, collect

from gptoss_kernels.triton import tiles
from gptoss_kernels.triton.tiles import Tile

TABLES = Path(tiles.__file__).with_name("tiles")


class Use(NamedTuple):
    """A case asks for a tile."""

    case: str
    key: str
    """kernel of the table"""
    rows: int


class Trial(NamedTuple):
    """One tile in one bucket of one kernel, judged."""

    bucket: int
    tile: Tile
    share: float
    """smallest over the bucket's cases; 0 where one does not pass"""
    blocks: int


def uses(case: Case, target: str) -> list[Use]:
    """Which tiles a case asks for, largest number of rows first for each kernel."""
    asked: dict[str, int] = {}
    plain = tiles.choose

    def watch(kernel: str, rows: int, arch: str) -> Tile:
        asked[kernel] = max(rows, asked.get(kernel, 0))
        return plain(kernel, rows, arch)

    with offline.idling(target):
        tiles.choose = watch
        try:
            case.call()
        finally:
            tiles.choose = plain
    return [Use(case.name, key, rows) for key, rows in asked.items()]


def scaled(case: Case, was: Tile, now: Tile) -> Case:
    """The work of one turn with another tile; bytes are those of weights, or of keys."""
    rows, cols, inner = now.rows / was.rows, now.cols / was.cols, now.inner / was.inner
    if case.scores:
        return case._replace(
            flop=case.flop * rows * cols,
            nbytes=case.nbytes * cols,
            scores=round(case.scores * rows * cols),
        )
    return case._replace(
        flop=case.flop * rows * cols * inner,
        nbytes=case.nbytes * cols * inner,
        weights=round(case.weights * cols * inner),
    )


def judged(task: tuple[str, str, str, Tile, Tile]) -> gate.Verdict:
    """One case on one target with one tile in place of the table's."""
    name, target, key, was, now = task
    case = next(case for case in collect() if case.name == name).on(target)
    plain = tiles.choose
    tiles.choose = lambda kernel, rows, arch: now if kernel == key else plain(kernel, rows, arch)
    try:
        return gate.judge(scaled(case, was, now)._replace(arch={}), target)
    finally:
        tiles.choose = plain


def candidates(was: Tile, most: int | None, sizes: Mapping[str, Sequence[int]]) -> list[Tile]:
    """Tiles to try in a bucket; no more rows than a power of two that holds the bucket."""
    limit = max(16, 1 << (most - 1).bit_length()) if most else 1 << 20
    default = {name: (getattr(was, name),) for name in Tile._fields} | {
        "warps": (2, 4, 8),
        "stages": (2, 3, 4),
    }
    choices = (sizes.get(name) or default[name] for name in Tile._fields)
    return [tile for each in product(*choices) if (tile := Tile(*each)).rows <= limit]


def best(trials: Iterable[Trial]) -> dict[int, Tile] | None:
    """A tile for each bucket, all with one `cols` and `inner`: the largest product of shares.

    Shares within two hundredths count as equal: then more bytes on their way decide, as blocks ×
    stages, then fewer warps.
    """
    trials = [trial for trial in trials if trial.share > 0]
    buckets = {trial.bucket for trial in trials}
    found: list[tuple[float, dict[int, Tile]]] = []
    for widths in sorted({(t.tile.cols, t.tile.inner) for t in trials}):
        mine = [t for t in trials if (t.tile.cols, t.tile.inner) == widths]
        if {t.bucket for t in mine} == buckets:
            picks = {b: max((t for t in mine if t.bucket == b), key=_rank) for b in buckets}
            shares = prod(t.share for t in picks.values())
            found.append((shares, {b: t.tile for b, t in picks.items()}))
    return max(found, key=lambda each: each[0])[1] if found else None


def _rank(trial: Trial) -> tuple:
    return round(trial.share * 50), trial.blocks * trial.tile.stages, -trial.tile.warps


def chosen(
    key: str, target: str, asked: Sequence[Use], sizes: Mapping[str, Sequence[int]], pool
) -> list[list]:
    """The column of one kernel and target: the table's entries, with those of cases replaced."""
    column = [list(entry) for entry in tiles._table()[key][target]]
    tasks = []
    for bucket, (most, *was) in enumerate(column):
        names = [use.case for use in asked if _bucket(column, use.rows) == bucket]
        for now in candidates(Tile(*was), most, sizes) if names else ():
            tasks += [(bucket, (name, target, key, Tile(*was), now)) for name in names]
    verdicts = list(pool.map(judged, [task for _, task in tasks]))
    grouped: dict[tuple[int, Tile], list[gate.Verdict]] = {}
    for (bucket, task), verdict in zip(tasks, verdicts, strict=True):
        grouped.setdefault((bucket, task[-1]), []).append(verdict)
    trials = [
        Trial(bucket, tile, 0 if any(v.faults for v in group) else min(v.share for v in group),
              min(v.blocks for v in group))
        for (bucket, tile), group in grouped.items()
    ]  # fmt: skip
    for trial in sorted(trials, key=_rank, reverse=True):
        print(f"  {key}, {target}, {column[trial.bucket][0]} rows: {tuple(trial.tile)} "
              f"{trial.share:.0%}, {trial.blocks} blocks")  # fmt: skip
    for bucket, tile in (best(trials) or {}).items():
        column[bucket] = [column[bucket][0], *tile]
    return column


def _bucket(column: Sequence[Sequence], rows: int) -> int:
    return next(i for i, (most, *_) in enumerate(column) if most is None or rows <= most)


def written(table: Mapping[str, Mapping[str, list]]) -> str:
    """A line for each target, as the tables are kept."""
    kernels = []
    for key, columns in table.items():
        lines = [f"    {json.dumps(arch)}: {json.dumps(each)}" for arch, each in columns.items()]
        kernels.append(f"  {json.dumps(key)}: {{\n" + ",\n".join(lines) + "\n  }")
    return "{\n" + ",\n".join(kernels) + "\n}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", help="a table in gptoss_kernels/triton/tiles, e.g. moe")
    parser.add_argument("targets", nargs="*", default=list(devices.GATED))
    for name in Tile._fields:
        parser.add_argument(f"--{name}", type=lambda text: tuple(map(int, text.split(","))))
    parser.add_argument("--dry", action="store_true", help="print the table, do not write it")
    given = parser.parse_args()
    sizes = {name: getattr(given, name) for name in Tile._fields if getattr(given, name)}
    path = TABLES / f"{given.file}.json"
    table = json.loads(path.read_text())
    asked = [use for case in collect() for use in uses(case, given.targets[0]) if use.key in table]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for key, target in product(sorted({use.key for use in asked}), given.targets):
            mine = [use for use in asked if use.key == key]
            table[key][target] = chosen(key, target, mine, sizes, pool)
    if given.dry:
        print(written(table))
    else:
        path.write_text(written(table))


if __name__ == "__main__":
    main()
