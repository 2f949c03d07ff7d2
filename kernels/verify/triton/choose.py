"""Tiles chosen offline: candidates are compiled, gated and ranked by the yardstick.

    python kernels/verify/triton/choose.py moe                     every target
    python kernels/verify/triton/choose.py moe sm_80 sm_120 --cols 64,128 --warps 4,8 --dry

The cases that use a table of `gptoss_kernels/triton/tiles/<file>.json` say what is compiled. A
tile stays unless another that passes the gate takes fewer clocks by more than `NEAR`, by the
yardstick and in every case of its bucket. Sizes are tried that are given; without any, warps and
stages, and where a tile reaches the roofline, nothing. `cols` and `inner`, which fix the order of
sums, are the same in all buckets of rows. The interpreter's column and buckets without a case stay
as they are. What was found, and by which command, goes to chosen.csv beside this file.
"""

import argparse
import csv
import json
import os
import sys
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
import triton
from case import Case, collect
from triton.runtime.jit import JITFunction

from gptoss_kernels.triton import tiles
from gptoss_kernels.triton.tiles import Tile

TABLES = Path(tiles.__file__).with_name("tiles")
FOUND = Path(__file__).with_name("chosen.csv")
NEAR = 0.02
"""Gains and shares that differ by no more count as equal"""


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
    gain: float
    """clocks of the table's tile over its own, smallest of the bucket's cases, or its share where
    the table's tile fails; 0: one fails"""
    share: float
    """of the roofline, smallest of the cases"""
    blocks: int


class Bucket(NamedTuple):
    """A bucket of a table's column, and the cases that ask for it."""

    number: int
    target: str
    key: str
    """kernel of the table"""
    was: Tile
    uses: tuple[Use, ...]


class Found(NamedTuple):
    """What a search said of one bucket."""

    kernel: str
    target: str
    rows: str
    """most rows of the bucket, or 'any'"""
    tile: str
    """that the table has since: rows, cols, inner, warps, stages"""
    share: str
    """of the roofline, smallest of the bucket's cases"""
    before: str
    """the tile it replaced; empty where it stayed"""
    gain: str
    """how many times fewer clocks than with that one"""
    tried: str
    """how many tiles, its own included"""
    command: str
    triton: str


def uses(case: Case, target: str) -> list[Use]:
    """The tile of the kernel that a case judges, if it multiplies: the last asked for before it."""
    asked: list[Use] = []
    found: list[Use] = []
    plain = tiles.choose

    def watch(kernel: str, rows: int, column: str) -> Tile:
        asked.append(Use(case.name, kernel, rows))
        return plain(kernel, rows, column)

    def run(self, *_, **__) -> None:
        if self.fn.__name__ == case.kernel and not found:
            found.extend(asked[-1:])

    with offline.idling(target):
        tiles.choose = watch  # pyright: ignore[reportAttributeAccessIssue]
        JITFunction.run = run  # offline puts it back
        try:
            case.call()
        finally:
            tiles.choose = plain
    return found if case.flop else []


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


def judged(case: Case, bucket: Bucket, now: Tile) -> gate.Verdict:
    """A case on the bucket's target with one tile in place of the table's."""
    plain = tiles.choose
    tiles.choose = lambda key, rows, column: (  # pyright: ignore[reportAttributeAccessIssue]
        now if key == bucket.key else plain(key, rows, column)
    )
    try:
        return gate.judge(case, bucket.target)
    finally:
        tiles.choose = plain


def candidates(was: Tile, most: int | None, sizes: Mapping[str, Sequence[int]]) -> list[Tile]:
    """Tiles to try in a bucket; no more rows than a power of two that holds the bucket."""
    limit = max(16, 1 << (most - 1).bit_length()) if most else 1 << 20
    default = {name: (getattr(was, name),) for name in Tile._fields} | {
        "warps": (2, 4, 8),
        "stages": (1, 2, 3, 4),
    }
    choices = (sizes.get(name) or default[name] for name in Tile._fields)
    tried = [tile for each in product(*choices) if (tile := Tile(*each)).rows <= limit]
    return [was, *(tile for tile in tried if tile != was)]


def best(trials: Iterable[Trial], own: Mapping[int, Tile]) -> dict[int, Tile] | None:
    """A tile for each bucket, all with one `cols` and `inner`; None where nothing passes.

    `own` are the table's. Another replaces one only if it gains more than `NEAR` and has no fewer
    bytes on their way, as blocks × stages: the yardstick does not see how long memory takes. Of
    several such, more bytes on their way decide, then fewer warps.
    """
    trials = [trial for trial in trials if trial.gain > 0]
    buckets = {trial.bucket for trial in trials}
    found: list[tuple[float, dict[int, Tile]]] = []
    for widths in sorted({(t.tile.cols, t.tile.inner) for t in trials}):
        mine = [t for t in trials if (t.tile.cols, t.tile.inner) == widths]
        if {t.bucket for t in mine} == buckets:
            picks = {b: _pick([t for t in mine if t.bucket == b], own.get(b)) for b in buckets}
            stays = all(own.get(b) == t.tile for b, t in picks.items())
            worth = prod(t.gain for t in picks.values()) + (NEAR if stays else 0)
            found.append((worth, {b: t.tile for b, t in picks.items()}))
    return max(found, key=lambda each: each[0])[1] if found else None


def _pick(trials: Sequence[Trial], own: Tile | None) -> Trial:
    mine = next((trial for trial in trials if trial.tile == own), None)
    if mine:
        trials = [trial for trial in trials if _rank(trial)[0] >= _rank(mine)[0]]
    top = max(trial.gain for trial in trials)
    if mine and mine.gain + NEAR >= top:
        return mine
    return max((trial for trial in trials if trial.gain + NEAR >= top), key=_rank)


def _rank(trial: Trial) -> tuple:
    return trial.blocks * trial.tile.stages, -trial.tile.warps


def clocks(case: Case, verdict: gate.Verdict, tile: Tile, rows: int) -> float:
    """Of the tightest pipe, for `rows` rows and one output and input (one key of attention)."""
    device = devices.TARGETS[verdict.target]
    memory = case.nbytes / (device.bandwidth / device.units / device.clock)
    turn = max(case.flop / device.mma, memory) / verdict.share
    return turn * -(-rows // tile.rows) / (tile.cols * (1 if case.scores else tile.inner))


def tried(task: tuple[Bucket, Tile, Mapping[str, float], float]) -> tuple[Trial, dict[str, float]]:
    """One tile in every case, until one fails or gains no more than `floor`; clocks by case.

    Gains are over the clocks of the table's tile that are given; without, they are shares.
    """
    bucket, now, known, floor = task
    verdicts, found, gain, share = [], {}, 0.0, 1.0
    for use in bucket.uses:
        case = next(case for case in collect() if case.name == use.case).on(bucket.target)
        case = scaled(case, bucket.was, now)._replace(arch={})
        verdict = judged(case, bucket, now)
        if verdict.faults:
            return Trial(bucket.number, now, 0, 0, 0), {}
        verdicts.append(verdict)
        found[use.case] = clocks(case, verdict, now, use.rows)
        share = min(share, verdict.share)
        gain = min(known[name] / mine for name, mine in found.items()) if known else share
        if gain <= floor:
            return Trial(bucket.number, now, 0, 0, 0), {}
    if now == bucket.was:
        gain = 1.0
    return Trial(bucket.number, now, gain, share, min(v.blocks for v in verdicts)), found


def chosen(
    key: str, target: str, asked: Sequence[Use], sizes: Mapping[str, Sequence[int]], pool
) -> tuple[list[list], list[Found]]:
    """The column of one kernel and target with what is better, and what was found."""
    column = [list(entry) for entry in tiles._table()[key][target]]
    uses: dict[int, list[Use]] = {}
    for use in asked:
        uses.setdefault(_bucket(column, use.rows), []).append(use)
    buckets = [Bucket(number, target, key, Tile(*column[number][1:]), tuple(uses[number]))
               for number in sorted(uses)]  # fmt: skip
    first = list(pool.map(tried, [(bucket, bucket.was, {}, 0.0) for bucket in buckets]))
    wider = bool(sizes.get("cols") or sizes.get("inner"))
    more = []
    for bucket, (trial, known) in zip(buckets, first, strict=True):
        if sizes or trial.share < 1 - NEAR:
            others = candidates(bucket.was, column[bucket.number][0], sizes)[1:]
            floor = 0.0 if wider or not known else 1 + NEAR
            more += [(bucket, now, known, floor) for now in others]
    trials = [trial for trial, _ in (*first, *pool.map(tried, more))]
    own = {bucket.number: bucket.was for bucket in buckets}
    picks = best(trials, own) or own
    for number, tile in picks.items():
        column[number][1:] = tile
    return column, [_found(bucket, column[bucket.number], trials) for bucket in buckets]


def _found(bucket: Bucket, entry: Sequence, trials: Iterable[Trial]) -> Found:
    """What is written down of a bucket whose entry is now `entry`."""
    mine = {trial.tile: trial for trial in trials if trial.bucket == bucket.number}
    now = mine[Tile(*entry[1:])]
    before = ("", "") if now.tile == bucket.was else (_text(bucket.was), f"{now.gain:.2f}")
    return Found(bucket.key, bucket.target, str(entry[0] or "any"), _text(now.tile),
                 f"{now.share:.2f}", *before, str(len(mine)), "", triton.__version__)  # fmt: skip


def _text(tile: Tile) -> str:
    return " ".join(map(str, tile))


def _bucket(column: Sequence[Sequence], rows: int) -> int:
    return next(i for i, (most, *_) in enumerate(column) if most is None or rows <= most)


def kept() -> list[Found]:
    """What the last search of each bucket found."""
    with FOUND.open(newline="") as file:
        return [Found(**row) for row in csv.DictReader(file)]


def entry(found: Found) -> list:
    """What a table of `tiles` holds where a search left it alone or put something."""
    rows = None if found.rows == "any" else int(found.rows)
    return [rows, *map(int, found.tile.split())]


def by_hand(found: Iterable[Found]) -> list[tuple[str, str, str]]:
    """(kernel, target, rows) of the entries that no search speaks of."""
    known = {each[:3] for each in found}
    return [
        (kernel, target, str(rows or "any"))
        for path in sorted(TABLES.glob("*.json"))
        for kernel, columns in json.loads(path.read_text()).items()
        for target in devices.GATED
        for rows, *_ in columns[target]
        if (kernel, target, str(rows or "any")) not in known
    ]


def keep(news: Iterable[Found]) -> None:
    """Put new findings in the place of old ones of the same bucket."""
    rows = {each[:3]: each for each in (*(kept() if FOUND.exists() else ()), *news)}
    with FOUND.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Found._fields)
        writer.writerows(rows[place] for place in sorted(rows))


def written(table: Mapping[str, Mapping[str, list]]) -> str:
    """A line for each target, as the tables are kept."""
    kernels = []
    for key, columns in table.items():
        lines = [f"    {json.dumps(arch)}: {json.dumps(each)}" for arch, each in columns.items()]
        kernels.append(f"  {json.dumps(key)}: {{\n" + ",\n".join(lines) + "\n  }")
    return "{\n" + ",\n".join(kernels) + "\n}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", help="a table in gptoss_kernels/triton/tiles, e.g. moe")
    parser.add_argument("targets", nargs="*", default=list(devices.GATED))
    for name in Tile._fields:
        parser.add_argument(f"--{name}", type=lambda text: tuple(map(int, text.split(","))))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--dry", action="store_true", help="print the table, write nothing")
    given = parser.parse_args()
    sizes = {name: getattr(given, name) for name in Tile._fields if getattr(given, name)}
    path = TABLES / f"{given.file}.json"
    table = json.loads(path.read_text())
    said = [word for word in sys.argv[1:] if not word.startswith("--processes=")]
    command = " ".join(["choose.py", *said])
    news: list[Found] = []
    with ProcessPoolExecutor(given.processes, mp_context=get_context("spawn")) as pool:
        for target in given.targets:
            asked = [use for case in collect() for use in uses(case, target) if use.key in table]
            for key in sorted({use.key for use in asked}):
                mine = [use for use in asked if use.key == key]
                table[key][target], found = chosen(key, target, mine, sizes, pool)
                for each in found:
                    print(*each, sep=", ", flush=True)
                    news.append(each._replace(command=command))
    if given.dry:
        print(written(table))
    else:
        path.write_text(written(table))
        keep(news)


if __name__ == "__main__":
    main()
