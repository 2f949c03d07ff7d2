"""What a compiled kernel is made of: instructions by class, its main loop, registers and spills.

NVIDIA's machine code comes from nvdisasm and cuobjdump, which Triton ships; AMD's is in the text
that Triton keeps. Nothing is executed.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import triton

BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
NVIDIA = {
    "mma": r"HMMA|HGMMA|QMMA|OMMA|QGMMA|IMMA|UTC\w*MMA",
    "ldsm": r"LDSM",
    "lds": r"LDS\b",
    "sts": r"STS\b|STSM",
    "copy": r"LDGSTS",
    "tma": r"UTMALDG|UTMASTG|UBLKCP",
    "tmem": r"LDTM|STTM|UTCCP",
    "ldg": r"LDG\b",
    "stg": r"STG|REDG|RED\b|ATOM",
    "spill": r"LDL|STL",
    "wait": r"BAR|SYNCS|WARPSYNC|DEPBAR|LDGDEPBAR|WARPGROUP|NANOSLEEP|ELECT",
    "mufu": r"MUFU",
    "shfl": r"SHFL|REDUX",
    "fp": r"FADD|FMUL|FFMA|HFMA|HMUL|HADD|FSEL|FMNMX|FSET|HMNMX|HSET|F2FP|DADD|DMUL|DFMA",
    "alu": r"[ILP]|F2[FI]|SHF|SEL|V|U|MOV|R2UR|S2|CS2|BFE|BMSK|SGXT|POPC|BREV|FLO|NOP",
}
"""Class of an instruction by the start of its opcode; the first that fits"""
AMD = {
    "mma": r"v_(smfmac|mfma|wmma|swmmac)",
    "lds": r"ds_(read|load|bpermute|permute|swizzle)",
    "sts": r"ds_(write|store)",
    "ldg": r"(global|buffer|flat)_load",
    "stg": r"(global|buffer|flat)_(store|atomic)",
    "spill": r"scratch_",
    "wait": r"s_(barrier|waitcnt|wait_|nop|sleep|setprio)",
    "shfl": r"v_(permlane|readlane|writelane)",
    "mufu": r"v_(exp|rcp|rsq|sqrt|log|sin|cos)_",
    "fp": r"v_(pk_)?(add|sub|mul|fmac?|max3?|min3?|cvt|ldexp|div)_(f|pk_f|pk_b|scale|fixup)",
    "alu": r"v_|s_",
}


class Instruction(NamedTuple):
    opcode: str
    target: str | None = None
    """label it may branch to"""
    stall: int = 0
    """clocks the compiler's schedule holds the warp after it (NVIDIA)"""


class Statistics(NamedTuple):
    """A compiled kernel, counted."""

    name: str
    target: str
    warps: int
    registers: int
    """per lane"""
    stack: int
    """bytes per lane, and registers that did not fit (AMD)"""
    shared: int
    """bytes per block"""
    tensor_memory: int
    """columns, sm_100"""
    total: Mapping[str, int]
    """instructions by class, and "all" of them"""
    loop: Mapping[str, int]
    """of the main loop; of everything where there is no loop"""
    aside: Mapping[str, int]
    """of those, what a branch passes over in a turn that does not need it; see `passed_over`"""
    rare: int
    """of those, what a second branch passes over"""
    has_loop: bool
    stall: int
    """clocks of one warp for one turn by the compiler's schedule"""
    mma: tuple[str, ...]
    """opcodes that multiply matrices in the main loop"""
    mma_flop: float
    """FLOP of those of one warp (a quarter of its group's for wgmma); 0 where opcodes do not say"""

    @property
    def turn(self) -> Mapping[str, int]:
        """Instructions of a turn that leaves aside what it may."""
        return {kind: count - self.aside.get(kind, 0) for kind, count in self.loop.items()}


def statistics(kernel: Any, target: str) -> Statistics:
    """Count what Triton compiled."""
    cuda = "cubin" in kernel.asm
    name = kernel.src.fn.fn.__name__
    if cuda:
        cubin = kernel.asm["cubin"]
        usage = _tool("cuobjdump", "-res-usage", cubin)
        found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
        if not found:
            raise ValueError(f"sass: cuobjdump says nothing about {name}: {usage[:200]}")
        registers, stack = int(found[1]), int(found[2]) + int(found[3])
        instructions, labels = parse_sass(_tool("nvdisasm", "-c", cubin, "-hex"))
    else:
        text = kernel.asm["amdgcn"]
        registers = _figure("vgpr_count", text)
        stack = _figure("private_segment_fixed_size", text) + _figure("vgpr_spill_count", text)
        instructions, labels = parse_gcn(text)
    first, last = bounds(instructions, labels)
    body = instructions[first:last]
    loop = body or instructions
    aside = passed_over(instructions, labels, first, last)
    rare = [passed_over(instructions, labels, block.start, block.stop) for block in aside]
    multiplying = [each.opcode for each in loop if kind_of(each.opcode) == "mma"]
    meta = kernel.metadata
    return Statistics(
        name,
        target,
        meta.num_warps,
        registers,
        stack,
        meta.shared,
        getattr(meta, "tmem_size", 0) or 0,
        counts(instructions),
        counts(loop),
        counts([instructions[place] for block in aside for place in block]),
        sum(len(block) for blocks in rare for block in blocks),
        bool(body),
        sum(each.stall for each in loop),
        tuple(sorted(set(multiplying))),
        sum(flop_of(opcode) for opcode in multiplying),
    )


def parse_sass(text: str) -> tuple[list[Instruction], dict[str, int]]:
    """nvdisasm -c -hex: instructions, and the place of each label."""
    found: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := re.match(r"^\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(found)
        elif each := re.search(
            r"/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)\s*(.*?);", line
        ):
            place = re.search(r"\.L_x_\d+", each[3]) if each[2].startswith("BRA") else None
            never = (each[1] or "").startswith("@!PT")  # a read that only keeps others apart
            found.append(Instruction("NOP" if never else each[2], place[0] if place else None))
        elif (word := re.match(r"^\s*/\*\s*0x([0-9a-f]{16})\s*\*/\s*$", line)) and found:
            # bits 105 to 108 of the 128-bit word
            found[-1] = found[-1]._replace(stall=int(word[1], 16) >> 41 & 15)
    return found, labels


def parse_gcn(text: str) -> tuple[list[Instruction], dict[str, int]]:
    """AMD's assembly as LLVM writes it."""
    found: list[Instruction] = []
    labels: dict[str, int] = {}
    starts = ("v_", "s_", "ds_", "global_", "buffer_", "flat_", "scratch_")
    for line in text.splitlines():
        line = line.split(";")[0].split("//")[0].strip()
        if label := re.match(r"^(\.?LBB\w+):", line):
            labels[label[1]] = len(found)
        elif (each := re.match(r"^([a-z][a-z0-9_]+)\s*(.*)$", line)) and each[1].startswith(starts):
            place = re.search(r"\.?LBB\w+", each[2]) if "branch" in each[1] else None
            found.append(Instruction(each[1], place[0] if place else None))
    return found, labels


def kind_of(opcode: str) -> str | None:
    """The class of an opcode."""
    table = AMD if opcode[0].islower() else NVIDIA
    return next((name for name, starts in table.items() if re.match(starts, opcode)), None)


def counts(instructions: Sequence[Instruction]) -> dict[str, int]:
    """Instructions by class, and "all"."""
    found = Counter(kind for each in instructions if (kind := kind_of(each.opcode)))
    return {"all": len(instructions), **found}


def main_loop(
    instructions: Sequence[Instruction], labels: Mapping[str, int], table: Mapping[str, str]
) -> Sequence[Instruction]:
    """Instructions of the main loop; none where nothing loops."""
    return instructions[slice(*bounds(instructions, labels))]


def bounds(instructions: Sequence[Instruction], labels: Mapping[str, int]) -> tuple[int, int]:
    """Start and end of the innermost loop with the most matrix products; without any, with the most
    loads.

    A loop around it is not meant, though it may hold more products: those that the compiler took
    out of the first turns to start the pipeline.
    """
    loops = sorted(
        {
            (labels[each.target], place)
            for place, each in enumerate(instructions)
            if each.target is not None
            and each.target in labels
            and labels[each.target] < place
            and not _leaves_a_wait(instructions, labels, place)
        }
    )
    bodies = {loop: counts(instructions[loop[0] : loop[1] + 1]) for loop in loops}

    def innermost(loop: tuple[int, int]) -> bool:
        inside = [o for o in loops if o != loop and loop[0] <= o[0] and o[1] <= loop[1]]
        if bodies[loop].get("mma", 0):
            return not any(bodies[o].get("mma", 0) for o in inside)
        return not inside

    def rank(loop: tuple[int, int]) -> tuple:
        body, inner = bodies[loop], innermost(loop)
        loads = sum(body.get(kind, 0) for kind in ("tma", "ldg", "copy"))
        return body.get("mma", 0) if inner else 0, inner, loads, -body["all"]

    first, last = max(loops, key=rank, default=(0, -1))
    return first, last + 1


def passed_over(
    instructions: Sequence[Instruction], labels: Mapping[str, int], first: int, last: int
) -> list[range]:
    """What turns of a loop leave out: blocks that load something of their own, multiply nothing
    and are entered only past a branch to their end. Where the compiler puts such a block behind
    the program it is no part of the loop in the first place."""
    found: list[range] = []
    branches = [(i, labels[e.target]) for i, e in enumerate(instructions)
                if e.target is not None and e.target in labels]  # fmt: skip
    passed = first
    for place, end in branches:
        inside = range(place + 1, end)
        if passed <= place < end and end <= last and not _enters(branches, inside):
            kinds = counts(instructions[place + 1 : end])
            if kinds.get("ldg") and not any(kinds.get(kind) for kind in ("mma", "copy", "tma")):
                found.append(inside)
                passed = end
    return found


def _enters(branches: Sequence[tuple[int, int]], inside: range) -> bool:
    """Whether a branch from elsewhere leads into a block."""
    return any(end in inside and place not in inside for place, end in branches)


def _leaves_a_wait(
    instructions: Sequence[Instruction], labels: Mapping[str, int], place: int
) -> bool:
    """Whether a branch only comes back from a wait that the compiler put behind the program."""
    spin = instructions[place - 1].target
    return spin is not None and place - 4 <= labels.get(spin, -9) < place


def flop_of(opcode: str) -> float:
    """FLOP one warp gets out of one matrix instruction; 0 where the opcode does not say."""
    if opcode.startswith("HMMA.16816"):
        return 2 * 16 * 8 * 16
    if opcode.startswith("HMMA.1688"):
        return 2 * 16 * 8 * 8
    shape = re.search(r"(\d+)x(\d+)x(\d+)", opcode)
    if not shape:
        return 0
    rows, cols, inner = map(int, shape.groups())
    return 2 * rows * cols * inner / (4 if opcode.startswith("HGMMA") else 1)


def _figure(key: str, text: str) -> int:
    found = re.search(rf"\.{key}:\s+(\d+)", text)
    return int(found[1]) if found else 0


def _tool(name: str, option: str, cubin: bytes, *more: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(BIN / name), option, *more, file.name]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr.strip()}")
    return done.stdout
