"""Kernels of others beside ours: compiled and counted in the same way, not part of this project.

    python -m pip download --no-deps --only-binary=:all: --python-version 3.12 --dest WHEELS \\
        gpt-oss==0.0.9 tokenspeed-triton-kernels==1.0.0.post20260510
    python kernels/verify/triton/peers.py WHEELS

compiles OpenAI's attention and triton_kernels' product with MXFP4 weights for the gated targets
and writes kernels/triton-peers.csv, from which the report takes them. In gpt-oss 0.0.9 the file is
that of openai/gpt-oss at 69a0b1c; the second package is a mirror of triton-lang/triton's
python/triton_kernels. Their code is neither copied nor kept here.
"""

import argparse
import csv
import hashlib
import os
import re
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

os.environ["TRITON_INTERPRET"] = "0"  # read when triton is first imported, next
os.environ["TRITON_DEFAULT_FP_FUSION"] = "1"  # their kernels take Triton 3.9's default

import devices
import gate
import offline
import peer_calls
import sass
import triton
import yardstick
from peer_calls import CALLS, Call

PLACE = gate.ROOT / "kernels" / "triton-peers.csv"
PACKAGES = {peer_calls.OPENAI: "gpt_oss", peer_calls.TRITON: "tokenspeed_triton_kernels"}
"""whose -> how the name of their wheel begins"""
ROLES = "its warps differ in what they do: this is the loop of those that multiply"


class Peer(NamedTuple):
    """One kernel of others on one target; empty where it does not compile, as `note` says."""

    case: str
    """of ours, that does the same work"""
    whose: str
    source: str
    """package, version and the first digits of its wheel's SHA-256"""
    triton: str
    target: str
    kernel: str = ""
    tile: str = ""
    """rows × cols, and × inner where that is split"""
    warps: str = ""
    registers: str = ""
    stack: str = ""
    spills: str = ""
    shared: str = ""
    """bytes per block"""
    mma: str = ""
    loop: str = ""
    """instructions of one turn of the main loop, one warp"""
    per_unit: str = ""
    """warp instructions per 64 × 64 scores, or lane instructions per MXFP4 weight"""
    tightest: str = ""
    share: str = ""
    """best share of the roofline"""
    blocks: str = ""
    """resident blocks of an SM"""
    note: str = ""


def kept() -> list[Peer]:
    """What was measured last."""
    with PLACE.open(newline="") as file:
        return [Peer(**row) for row in csv.DictReader(file)]


def keep(found: Sequence[Peer]) -> None:
    """Write the whole table."""
    with PLACE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Peer._fields)
        writer.writerows(found)


@contextmanager
def unpacked(folder: Path, whose: Sequence[str] = tuple(PACKAGES)) -> Iterator[dict[str, str]]:
    """Their wheels on the import path; whose -> source. Raises FileNotFoundError without one."""
    sources = {}
    with TemporaryDirectory() as place:
        for owner in whose:
            start = PACKAGES[owner]
            wheel = next(iter(sorted(folder.glob(f"{start}-*.whl"))), None)
            if wheel is None:
                raise FileNotFoundError(f"peers: no {start}-*.whl in {folder}")
            name, version = wheel.name.split("-")[:2]
            digest = hashlib.sha256(wheel.read_bytes()).hexdigest()[:12]
            sources[owner] = f"{name.replace('_', '-')} {version} ({digest})"
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(place)
        sys.path.insert(0, place)
        try:
            yield sources
        finally:
            sys.path.remove(place)


def measured(call: Call, target: str, source: str) -> Peer:
    """Compile and count one operation; what their code or the compiler refuses is noted."""
    empty = Peer(call.case, call.whose, source, triton.__version__, target)
    silent = redirect_stdout(StringIO())  # Triton prints all of a program it cannot assemble
    try:
        with silent, peer_calls.device(target), offline.compiling(target) as launches:
            call.call()
    except Exception as error:  # whatever their code raises is the finding
        return empty._replace(note=f"does not compile: {_reason(error)}")
    names = [each.name for each in launches]
    launch = next((each for each in launches if each.name in call.kernels), None)
    if launch is None:
        return empty._replace(note=f"starts {', '.join(names) or 'nothing'}")
    return counted(call, launch, empty)


def counted(call: Call, launch: offline.Launch, empty: Peer) -> Peer:
    """The columns of a kernel that was compiled."""
    found = sass.statistics(launch.kernel, empty.target)
    tile = {name: size for name, size in launch.arguments.items() if name.startswith("BLOCK_")}
    peer = empty._replace(
        kernel=found.name,
        tile=" × ".join(str(tile[f"BLOCK_{axis}"]) for axis in "MNK" if f"BLOCK_{axis}" in tile),
        warps=str(found.warps),
        registers=str(found.registers),
        stack=str(found.stack),
        spills=str(found.loop.get("spill", 0)),
        shared=str(found.shared),
        mma="/".join(gate.classes(found.mma)),
        loop=str(found.loop["all"]),
        blocks=str(yardstick.blocks(found)),
        note="; ".join(gate.refused(found)),
    )
    if "ttg.warp_specialize" in launch.kernel.asm["ttgir"]:
        return peer._replace(note="; ".join(filter(None, (peer.note, ROLES))))
    case = peer_calls.work(call, tile)
    limit, unit = yardstick.bound(found, case), yardstick.per_unit(found, case)
    return peer._replace(
        per_unit=f"{unit:.2f}", tightest=limit.tightest, share=f"{limit.share:.2f}"
    )


def _reason(error: BaseException) -> str:
    """The innermost cause, in one line; of an assembler's complaints the first."""
    while error.__cause__:
        error = error.__cause__
    said = re.search(r"line \d+; error\s*: (.+)", str(error))
    return said[1] if said else f"{type(error).__name__}: {' '.join(str(error).split())[-200:]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("wheels", type=Path, help="a folder with both wheels")
    found = []
    with unpacked(parser.parse_args().wheels) as sources:
        for call in CALLS:
            for target in devices.GATED:
                found.append(measured(call, target, sources[call.whose]))
                print(*found[-1], sep=", ", flush=True)
    keep(found)


if __name__ == "__main__":
    main()
