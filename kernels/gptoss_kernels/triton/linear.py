"""`linear` in Triton; formula and signature are those of `gptoss_kernels.linear`.

The inputs are summed in pieces of fixed length, and the pieces in their order. Where rows are few,
each piece is a program of its own, so that one row keeps a whole GPU reading weights; where they
are many, a program sums all pieces itself. Both give the same bits: a row does not notice its
company. The backward pass goes to the activations only and reads the stored weight again.
"""

import torch
import triton
from jaxtyping import Float
from torch import Tensor

from gptoss_kernels.triton.launch import launch
from gptoss_kernels.triton.linear_kernels import linear_kernel, merge_kernel, split_kernel
from gptoss_kernels.triton.tiles import Tile, architecture, tile

PIECE = 768
"""Inputs in a piece, about."""
MOST = 8
"""Pieces at most."""
WIDE = 16384
"""With more outputs than these there is one piece: they fill a GPU by themselves."""
FEW = 64
"""With fewer tiles of results than these, every piece is a program of its own."""


def linear(
    x: Float[Tensor, "*rows inner"],
    weight: Float[Tensor, "outer inner"],
    bias: Float[Tensor, " outer"] | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "*rows outer"]:
    """Project `x`; the result has `dtype` (default: that of `x`), rounded once."""
    if x.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"linear: x ends in {x.shape[-1]} but the weight maps {weight.shape[-1]} inputs"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"linear: {len(weight)} outputs, the bias is {tuple(bias.shape)}")
    check("linear", x=x, weight=weight, bias=bias)
    return _Linear.apply(x, weight, bias, dtype or x.dtype)  # pyright: ignore[reportReturnType]


def check(op: str, **tensors: Tensor | None) -> None:
    """Raise ValueError unless all are bfloat16 or float32 on one device."""
    given = {name: each for name, each in tensors.items() if each is not None}
    for name, each in given.items():
        if each.dtype not in (torch.bfloat16, torch.float32):
            raise ValueError(f"{op}: expected {name} in bfloat16 or float32; got {each.dtype}")
    if len({each.device for each in given.values()}) > 1:
        where = ", ".join(f"{name} on {each.device}" for name, each in given.items())
        raise ValueError(f"{op}: expected one device; got {where}")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.dtype = x.dtype
        return project(x, weight.contiguous(), bias, dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        (weight,) = ctx.saved_tensors
        return project(grad, weight.contiguous().mT, None, ctx.dtype), None, None, None


def project(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """x Wᵀ + bias for a weight [outer, inner] stored along either axis; no gradient."""
    parts = in_parts(x, weight, bias, dtype)
    if len(parts) == 1:
        return parts[0]
    y = torch.empty_like(parts[0], dtype=dtype)
    launch(merge_kernel, (triton.cdiv(y.numel(), 512),), parts, bias, y, y.numel(), len(weight),
           len(parts), BLOCK=512, num_warps=4)  # fmt: skip
    return y


def in_parts(
    x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Float[Tensor, "part *rows outer"]:
    """x Wᵀ + bias in one part, or what several are the sum of: in float32, without the bias."""
    outer, inner = weight.shape
    rows = x.shape[:-1].numel()
    sizes = tile(kind("linear", x, weight), rows, x.device)
    count, length = pieces(outer, inner, sizes.inner)
    tiles = triton.cdiv(rows, sizes.rows) * triton.cdiv(outer, sizes.cols)
    split = terms(x)
    if count == 1 or tiles >= FEW:
        whole = split.new_empty((1, *x.shape[:-1], outer), dtype=dtype)
        _start(split, weight, bias, whole, (tiles,), length, sizes)
        return whole
    parts = split.new_empty((count, *x.shape[:-1], outer), dtype=torch.float32)
    _start(split, weight, None, parts, (tiles, count), length, sizes)
    return parts


def kind(name: str, x: Tensor, weight: Tensor) -> str:
    """The entry of the table of tiles for these dtypes."""
    if weight.dtype == torch.float32:
        return f"{name}_float32_weight"
    return f"{name}_float32" if x.dtype == torch.float32 else name


def terms(x: Float[Tensor, "*rows inner"]) -> Float[Tensor, "term row inner"]:
    """What kernels multiply: `x` itself, or the three bfloat16 terms of float32."""
    flat = x.contiguous().view(x.shape[:-1].numel(), x.shape[-1])
    if x.dtype == torch.bfloat16:
        return flat[None]
    split = flat.new_empty((3, *flat.shape), dtype=torch.bfloat16)
    launch(split_kernel, (triton.cdiv(flat.numel(), 1024),), flat, split, flat.numel(),
           BLOCK=1024, num_warps=4)  # fmt: skip
    return split


def _start(
    x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, grid: tuple, length: int, sizes: Tile
) -> None:
    """Run the kernel; a second axis of the grid stands for the pieces."""
    outer, inner = weight.shape
    launch(linear_kernel, grid, x, weight, bias, y, x.shape[1], outer, inner, length,
           *weight.stride(), APART=len(grid) == 2, ONE=length >= inner, TERMS=len(x),
           EVEN=inner % sizes.inner == 0, ALONG=weight.stride(1) == 1, BM=sizes.rows,
           BN=sizes.cols, BK=sizes.inner, **options(sizes, x.device))  # fmt: skip


def options(sizes: Tile, device: torch.device) -> dict[str, int]:
    """How a tile is compiled; on AMD the matrix instruction must not follow the number of rows."""
    found = {"num_warps": sizes.warps, "num_stages": sizes.stages}
    return found | {"matrix_instr_nonkdim": 16} if architecture(device) == "gfx942" else found


def pieces(outer: int, inner: int, block: int) -> tuple[int, int]:
    """How many pieces the inputs fall into, and the inputs in each: whole blocks."""
    count = 1 if outer > WIDE else min(MOST, max(1, triton.cdiv(inner, PIECE)))
    length = triton.cdiv(triton.cdiv(inner, count), block) * block
    return max(1, triton.cdiv(inner, max(1, length))), max(1, length)
