"""The compile gate: each case compiled for each target, counted and judged.

    python kernels/verify/triton/gate.py [target ...]

A kernel must fit the device, keep everything in registers, multiply on the matrix units and stay
below its case's ceiling of instructions. Until a source changes, out/triton-gate keeps verdicts.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

os.environ["TRITON_INTERPRET"] = "0"  # read when triton is first imported, next

import devices
import offline
import sass
import triton
import yardstick
from case import Case, collect

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
KEPT = ROOT / "out" / "triton-gate"
TENSOR_MEMORY = 512
"""Columns an SM has, sm_100"""


class Verdict(NamedTuple):
    """One case on one target."""

    case: str
    target: str
    faults: list[str]
    """why it does not pass; empty if it does"""
    kernel: str = ""
    warps: int = 0
    registers: int = 0
    stack: int = 0
    spills: int = 0
    """instructions of the main loop that move registers to memory and back"""
    shared: int = 0
    mma: str = ""
    """class of the matrix instructions in the main loop"""
    loop: int = 0
    """instructions of one turn, one warp; of everything where there is no loop"""
    aside: int = 0
    """of those, what a turn leaves out that does not need it: masks where all keys are seen"""
    per_unit: float | None = None
    """in such a turn: lane instructions per MXFP4 weight, warp instructions per 64 × 64 scores"""
    tightest: str = ""
    """the pipe that holds it back"""
    share: float = 0
    """best share of the roofline"""
    blocks: int = 0
    """resident blocks of an SM"""


def judge(case: Case, target: str) -> Verdict:
    """Compile one case for one target; every kernel it starts must pass, one is reported."""
    case = case.on(target)
    try:
        with offline.compiling(target) as launches:
            case.call()
    except (triton.CompilationError, triton.OutOfResources, RuntimeError) as error:
        return Verdict(case.name, target, [f"does not compile: {_reason(error)}"])
    kernels = {id(each.kernel): each for each in launches}
    counted = [_counted(each, target) for each in kernels.values()]
    judged = [each for each in counted if each.name == case.kernel]
    if not judged:
        names = ", ".join(sorted({each.name for each in counted}))
        return Verdict(case.name, target, [f"{case.kernel} was not started, only {names}"])
    faults = [fault for each in counted for fault in refused(each)]
    return _verdict(case, judged[0], faults + too_slow(judged[0], case))


_KNOWN: dict[tuple[str, str], sass.Statistics] = {}


def _counted(launch: offline.Launch, target: str) -> sass.Statistics:
    """Counted once a process: cases share kernels."""
    key = (launch.kernel.hash, target)
    if key not in _KNOWN:
        _KNOWN[key] = sass.statistics(launch.kernel, target)
    return _KNOWN[key]


def _reason(error: BaseException) -> str:
    """What the compiler said in the innermost function."""
    while error.__cause__:
        error = error.__cause__
    return " ".join(str(error).split())[-200:]


def refused(found: sass.Statistics) -> list[str]:
    """What no kernel may do, whatever it computes."""
    device, faults = devices.TARGETS[found.target], []
    if found.shared > device.shared_block:
        faults.append(f"{found.name}: {found.shared} bytes of {device.shared_block} shared memory")
    if found.tensor_memory > TENSOR_MEMORY:
        faults.append(f"{found.name}: {found.tensor_memory} columns of tensor memory")
    if found.stack:
        faults.append(f"{found.name}: {found.stack} bytes of stack")
    if found.loop.get("spill", 0):
        faults.append(f"{found.name}: {found.loop['spill']} spills in the main loop")
    return faults


def too_slow(found: sass.Statistics, case: Case) -> list[str]:
    """What this case's kernel must do besides."""
    faults, unit = [], yardstick.per_unit(found, case)
    if case.flop and not found.loop.get("mma", 0):
        faults.append(f"{found.name}: no matrix instructions in the main loop")
    done = found.mma_flop * found.warps
    if done and done < 0.99 * case.flop * case.turns:
        faults.append(f"{found.name}: {done:.0f} FLOP in a turn, the case says {case.flop:.0f}")
    ceiling = case.most.get(found.target)
    if ceiling is not None and unit is not None and unit > ceiling:
        faults.append(f"{found.name}: {unit:.2f} instructions, the ceiling is {ceiling}")
    return faults


def _verdict(case: Case, found: sass.Statistics, faults: list[str]) -> Verdict:
    limit = yardstick.bound(found, case)
    return Verdict(
        case.name, found.target, faults, found.name, found.warps, found.registers, found.stack,
        found.loop.get("spill", 0), found.shared, "/".join(classes(found.mma)), found.loop["all"],
        found.aside["all"], yardstick.per_unit(found, case), limit.tightest, limit.share,
        yardstick.blocks(found),
    )  # fmt: skip


def classes(opcodes: Iterable[str]) -> list[str]:
    """HMMA, HGMMA (wgmma), UTCHMMA (tcgen05) or MFMA."""
    return sorted({"MFMA" if "mfma" in op else op.split(".")[0] for op in opcodes})


def run(names: Sequence[str], targets: Sequence[str], processes: int = 2) -> list[Verdict]:
    """Verdicts of the named cases in the order of `names`, then `targets`."""
    key = _sources()
    tasks = [(name, target, key) for name in names for target in targets]
    # neighbours share kernels: they go to one process, in one target
    order = sorted(tasks, key=lambda task: targets.index(task[1]))
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        found = dict(zip(order, pool.map(_kept, order, chunksize=8), strict=True))
    return [found[task] for task in tasks]


def _kept(task: tuple[str, str, str]) -> Verdict:
    name, target, key = task
    digest = hashlib.sha256(f"{name}, {target}, {key}".encode()).hexdigest()[:24]
    path = KEPT / f"{digest}.json"
    if path.exists():
        return Verdict(**json.loads(path.read_text()))
    case = next(case for case in collect() if case.name == name)
    verdict = judge(case, target)
    KEPT.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(verdict._asdict()))
    part.replace(path)
    return verdict


def each_kept(
    measure: Callable[[str], list], targets: Sequence[str], processes: int = 2
) -> list[list]:
    """`measure` of each target, in processes of their own; kept like verdicts."""
    key = _sources()
    tasks = [(measure, target, key) for target in targets]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return list(pool.map(_measured, tasks))


def _measured(task: tuple[Callable[[str], list], str, str]) -> list:
    measure, target, key = task
    name = f"{measure.__name__}, {target}, {key}"
    path = KEPT / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.json"
    if not path.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(measure(target)))
        part.replace(path)
    return json.loads(path.read_text())


def _sources() -> str:
    """Changes whenever a kernel, a tile, a case or a tool does."""
    folders = (ROOT / "kernels" / "gptoss_kernels", HERE)
    files = [f for folder in folders for f in sorted(folder.rglob("*")) if _is_source(f)]
    digest = hashlib.sha256(triton.__version__.encode())
    for file in files:
        digest.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def _is_source(file: Path) -> bool:
    return file.suffix in (".py", ".json") and "native" not in file.parts


def main() -> None:
    targets = sys.argv[1:] or devices.GATED
    verdicts = run([case.name for case in collect()], targets)
    for each in verdicts:
        print(f"{each.case}, {each.target}: {'; '.join(each.faults) or 'passes'}")
    sys.exit(any(each.faults for each in verdicts))


if __name__ == "__main__":
    main()
