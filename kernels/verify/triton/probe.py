"""Two small kernels that use what the real ones use, and what becomes of them under each fault.

    python kernels/verify/triton/probe.py        prints a line of JSON for every target and fault

A product of matrices has asynchronous copies, ldmatrix, mma and a rounded result; rows less their
mean, which several warps sum, have shared memory and barriers. No fault may leave the results as
they are.
"""

import json
from itertools import product as product_of

import offline
import ptx_faults
import ptx_machine
import torch
import triton
import triton.language as tl
from ptx_memory import MemoryFault
from torch import Tensor

from gptoss_kernels.triton.launch import launch


def product(x: Tensor, w: Tensor) -> Tensor:
    """x [row, inner] @ w [inner, col], rounded to bfloat16."""
    (rows, inner), cols = x.shape, w.shape[1]
    y = x.new_empty(rows, cols)
    grid = (triton.cdiv(rows, 32), triton.cdiv(cols, 32))
    launch(_product, grid, x, w, y, rows, cols, inner,
           ROWS=32, COLS=32, INNER=32, num_warps=4, num_stages=3)  # fmt: skip
    return y


def centred(x: Tensor) -> Tensor:
    """Each row less its mean."""
    y = torch.empty_like(x)
    launch(_centred, (x.shape[0],), x, y, x.shape[1], BLOCK=512, num_warps=4)
    return y


@triton.jit
def _product(
    x_ptr, w_ptr, y_ptr, rows, cols, inner,
    ROWS: tl.constexpr, COLS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    col = tl.program_id(1).to(tl.int64) * COLS + tl.arange(0, COLS)
    acc = tl.zeros((ROWS, COLS), tl.float32)
    for start in range(0, inner, INNER):
        i = start + tl.arange(0, INNER)
        x_real = (row < rows)[:, None] & (i < inner)[None, :]
        w_real = (i < inner)[:, None] & (col < cols)[None, :]
        x = tl.load(x_ptr + row[:, None] * inner + i[None, :], mask=x_real, other=0.0)
        w = tl.load(w_ptr + i[:, None] * cols + col[None, :], mask=w_real, other=0.0)
        acc = tl.dot(x, w, acc)
    real = (row < rows)[:, None] & (col < cols)[None, :]
    y = acc.to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + row[:, None] * cols + col[None, :], y, mask=real)


@triton.jit
def _centred(x_ptr, y_ptr, width, BLOCK: tl.constexpr):
    row, i = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * width + i, mask=i < width, other=0.0)
    tl.store(y_ptr + row * width + i, x - tl.sum(x, 0) / width, mask=i < width)


@triton.jit
def spilling(x_ptr, w_ptr, y_ptr, inner, SIZE: tl.constexpr):
    """A tile far too large for one warp: what the compile gate must refuse."""
    i, k = tl.arange(0, SIZE), tl.arange(0, 32)
    acc = tl.zeros((SIZE, SIZE), tl.float32)
    for start in range(0, inner, 32):
        x = tl.load(x_ptr + i[:, None] * inner + start + k[None, :])
        w = tl.load(w_ptr + i[None, :] * inner + start + k[:, None])
        acc = tl.dot(x, w, acc)
    tl.store(y_ptr + i[:, None] * SIZE + i[None, :], acc)


def _product_is_wrong() -> str | None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(45, 144, generator=g).bfloat16()
    w = torch.randn(144, 48, generator=g).bfloat16()
    y, wanted = product(x, w), (x.double() @ w.double()).float().bfloat16()
    apart = float((y != wanted).float().mean())
    return f"{apart:.0%} of the elements differ" if apart > 0.01 else None


def _centred_is_wrong() -> str | None:
    x = 1 + torch.randn(7, 409, generator=torch.Generator().manual_seed(0))
    found, wanted = centred(x), x - x.mean(1, keepdim=True)
    right = torch.allclose(found, wanted, rtol=1e-5, atol=1e-5)
    return None if right else f"off by {(found - wanted).abs().max():.1e}"


PARITY = {"product": _product_is_wrong, "centred": _centred_is_wrong}


def outcome(kernel: str, target: str, how: ptx_machine.Run, fault: str | None) -> dict:
    """Whether the fault found a place, and how it showed."""
    places = []

    def changed(ptx: str) -> str:
        faulty = ptx_faults.FAULTS[fault](ptx) if fault else ptx
        places.append(faulty != ptx)
        return faulty

    with offline.executing(target, how, changed):
        try:
            seen = PARITY[kernel]()
        except (ptx_machine.Deadlock, MemoryFault) as error:
            seen = f"{type(error).__name__}: {error}"
    words = {"kernel": kernel, "target": target, "how": f"{how.warps}, {how.copies}"}
    return words | {"fault": fault, "placed": any(places), "seen": seen}


def main() -> None:
    for kernel, target in product_of(PARITY, ("sm_80", "sm_120")):
        for how in product_of(("together", "forward", "backward"), ("late", "early")):
            print(json.dumps(outcome(kernel, target, ptx_machine.Run(*how), None)))
        for fault in ptx_faults.FAULTS:
            print(json.dumps(outcome(kernel, target, ptx_machine.Run("backward"), fault)))


if __name__ == "__main__":
    main()
