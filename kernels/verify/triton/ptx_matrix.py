"""Matrix instructions: fragments of a warp, as the PTX manual lays them out over its lanes."""

import re

import numpy as np
from ptx_operands import Step, address, members, source, target
from ptx_program import Instruction, Program
from ptx_transfers import fetch, put

from gptoss_kernels.triton.bits import widen


def _fragment(lanes, registers: list) -> np.ndarray:
    """[warp, lane // 4, lane % 4, register, half] of registers that hold two bfloat16."""
    words = np.stack([lanes.every(read(lanes)) for read in registers], 1)
    return widen(words.view(np.uint16)).reshape(-1, 8, 4, len(registers), 2)


def _multiply(each: Instruction, program: Program) -> Step:
    """mma m16n8k16, bfloat16 into float32: lane l holds row l // 4 and columns 2 (l % 4), + 1."""
    if each.opcode != "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32":
        raise NotImplementedError(f"PTX: {each.opcode} is not known to the emulator")
    writes = [target(name, program) for name in members(each.operands[0])]
    a, b = ([source(n, "u32", program) for n in members(each.operands[i])] for i in (1, 2))
    c = [source(name, "f32", program) for name in members(each.operands[3])]

    def step(lanes, mask) -> None:
        left = (
            _fragment(lanes, a).astype(np.float64).reshape(-1, 8, 4, 2, 2, 2)
        )  # [warp, row, col, col 8, row 8, h]
        left = left.transpose(0, 4, 1, 3, 2, 5).reshape(-1, 16, 16)
        right = _fragment(lanes, b).transpose(0, 3, 2, 4, 1).reshape(-1, 16, 8)
        sums = np.stack([lanes.every(read(lanes)) for read in c], 1).reshape(-1, 8, 4, 2, 2)
        # in float64, so that where a row stands in a fragment does not change its sum
        out = (left @ right + sums.transpose(0, 3, 1, 2, 4).reshape(-1, 16, 8)).astype(np.float32)
        out = out.reshape(-1, 2, 8, 4, 2).transpose(0, 2, 3, 1, 4).reshape(-1, 4)
        for j, write in enumerate(writes):
            write(lanes, np.ascontiguousarray(out[:, j]), mask)

    return step


def _count(each: Instruction) -> int:
    found = re.search(r"\.x([124])\.", each.opcode)
    if not found or "m8n8" not in each.words or each.words[-1] != "b16":
        raise NotImplementedError(f"PTX: {each.opcode} is not known to the emulator")
    return int(found[1])


def _rows(lanes, mask, count: int) -> np.ndarray:
    """The lanes that give the addresses of `count` 8 × 8 matrices."""
    giving = np.arange(lanes.count) % 32 < 8 * count
    return np.flatnonzero(giving if mask is None else giving & mask)


def _load_matrix(each: Instruction, program: Program) -> Step:
    """Lane 8 j + i points to row i of matrix j; lane l gets row l // 4, columns 2 (l % 4), + 1."""
    count, place = _count(each), address(each.operands[1], program)
    writes = [target(name, program) for name in members(each.operands[0])]
    turned = "trans" in each.words

    def step(lanes, mask) -> None:
        chosen, rows = _rows(lanes, mask, count), np.zeros((lanes.count, 16), np.uint8)
        rows[chosen] = fetch(lanes, place(lanes), 16, chosen, True)
        matrices = rows.view(np.uint16).reshape(-1, 4, 8, 8)
        if turned:
            matrices = np.ascontiguousarray(matrices.transpose(0, 1, 3, 2))
        words = matrices.view(np.uint32).reshape(-1, 4, 32)
        for j, write in enumerate(writes):
            write(lanes, np.ascontiguousarray(words[:, j]).reshape(-1), mask)

    return step


def _store_matrix(each: Instruction, program: Program) -> Step:
    count, place = _count(each), address(each.operands[0], program)
    reads = [source(name, "u32", program) for name in members(each.operands[1])]
    turned = "trans" in each.words

    def step(lanes, mask) -> None:
        words = np.zeros((lanes.count // 32, 4, 32), np.uint32)
        for j, read in enumerate(reads):
            words[:, j] = lanes.every(read(lanes)).reshape(-1, 32)
        matrices = words.view(np.uint16).reshape(-1, 4, 8, 8)
        if turned:
            matrices = np.ascontiguousarray(matrices.transpose(0, 1, 3, 2))
        chosen = _rows(lanes, mask, count)
        rows = matrices.view(np.uint8).reshape(lanes.count, 16)[chosen]
        put(lanes, place(lanes), rows, chosen, True)

    return step


OPCODES = {"mma": _multiply, "ldmatrix": _load_matrix, "stmatrix": _store_matrix}
