"""Others' operations at the shapes of our cases, as their own host code starts them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import devices
import torch
from case import Case

OPENAI, TRITON = "openai/gpt-oss", "triton_kernels"
D_MODEL, D_FF, EXPERTS, K = 2880, 2880, 32, 4
BLOCK = 32
"""MXFP4 weights that share a scale."""
LARGE = 512
"""Tokens from which triton_kernels' own benchmark lays scales out for 8 warps, not 4."""


class Call(NamedTuple):
    """One operation of others."""

    case: str
    """of ours, that does the same work"""
    whose: str
    kernels: tuple[str, ...]
    """which of them multiplies"""
    call: Callable[[], object]


@contextmanager
def device(target: str) -> Iterator[None]:
    """torch.cuda answers for a device of `target`, which their heuristics ask."""
    known = devices.TARGETS[target]
    found = SimpleNamespace(
        multi_processor_count=known.units, shared_memory_per_block_optin=known.shared_block
    )
    capability = divmod(known.arch, 10) if isinstance(known.arch, int) else (9, 4)
    with (
        mock.patch("torch.cuda.get_device_properties", lambda *_: found),
        mock.patch("torch.cuda.get_device_capability", lambda *_: capability),
    ):
        yield


def attend(window: int) -> None:
    """A prompt of 512; 0 is no window."""
    attention: Any = import_module("gpt_oss.triton.attention").attention
    q = torch.empty(1, 512, 8, 8, 64, dtype=torch.bfloat16)
    k, v = torch.empty(2, 1, 512, 8, 64, dtype=torch.bfloat16)
    attention(q, k, v, torch.empty(64, dtype=torch.bfloat16), 0.125, window,
              torch.zeros(1, dtype=torch.int32))  # fmt: skip


def up(tokens: int) -> None:
    """Gate, up and SwiGLU of every token's four experts."""
    m: Any = import_module("triton_kernels.matmul")
    swiglu: Any = import_module("triton_kernels.swiglu").swiglu_fn
    specs = m.FnSpecs("swiglu", swiglu, ("alpha", "limit"), reduction_n=2)
    x = torch.empty(tokens, D_MODEL, dtype=torch.bfloat16)
    _multiply(x, 2 * D_FF, tokens, gather_indx=torch.zeros(tokens * K, dtype=torch.int32),
              fused_activation=m.FusedActivation(specs, (1.702, 7.0)))  # fmt: skip


def down(tokens: int) -> None:
    """What each slot's expert writes, times its weight, in the order of tokens."""
    slots = tokens * K
    x = torch.empty(slots, D_FF, dtype=torch.bfloat16)
    _multiply(x, D_MODEL, tokens, scatter_indx=torch.zeros(slots, dtype=torch.int32),
              gammas=torch.empty(slots))  # fmt: skip


def _multiply(x: torch.Tensor, outer: int, tokens: int, **how: object) -> None:
    """x [row, inner] by MXFP4 weights of its expert, in the layouts they take by default."""
    m: Any = import_module("triton_kernels.matmul")
    tensor: Any = import_module("triton_kernels.tensor")
    layout: Any = import_module("triton_kernels.tensor_details.layout")
    ragged: Any = import_module("triton_kernels.tensor_details.ragged_tensor")
    inner, slots = x.shape[1], tokens * K
    codes = torch.zeros(EXPERTS, outer, inner // 2, dtype=torch.uint8).mT
    scales = torch.zeros(EXPERTS, outer, inner // BLOCK, dtype=torch.uint8).mT
    warps = 4 if tokens <= LARGE else 8
    weight = tensor.convert_layout(
        tensor.wrap_torch_tensor(codes, dtype=tensor.FP4),
        layout.make_default_matmul_mxfp4_w_layout(mx_axis=-2),
    )
    scale = tensor.convert_layout(
        tensor.wrap_torch_tensor(scales),
        layout.make_default_matmul_mxfp4_w_scale_layout(mx_axis=-2, num_warps=warps),
    )
    count = torch.zeros(EXPERTS, dtype=torch.int32)
    count[: min(EXPERTS, slots)] = max(1, slots // EXPERTS)
    rows = ragged.make_ragged_tensor_metadata_torch(count, slots)
    precision = m.PrecisionConfig(b_mx_scale=scale, b_microblock_size=BLOCK)
    m.matmul(x, weight, torch.empty(EXPERTS, outer), a_ragged_metadata=rows,
             precision_config=precision, **how)  # fmt: skip


def work(call: Call, tile: dict[str, int]) -> Case:
    """The useful work of one turn of their main loop, reckoned as in our cases."""
    rows, cols = tile["BLOCK_M"], tile["BLOCK_N"]
    if call.whose == OPENAI:
        flop, nbytes = 2 * 2 * rows * cols * 64, 2 * cols * 64 * 2
        return Case(call.case, "", call.call, flop, nbytes, scores=rows * cols)
    weights = cols * tile["BLOCK_K"]
    nbytes = weights // 2 + weights // BLOCK + 2 * rows * tile["BLOCK_K"]
    return Case(call.case, "", call.call, 2 * rows * weights, nbytes, weights)


MATMUL = ("_matmul", "_p_matmul")
CALLS = (
    Call("attention, a prompt of 512", OPENAI, ("_attn_fwd",), partial(attend, 0)),
    Call("attention, a prompt of 512 in a window", OPENAI, ("_attn_fwd",), partial(attend, 128)),
    Call("experts, up, decode", TRITON, MATMUL, partial(up, 1)),
    Call("experts, down, decode", TRITON, MATMUL, partial(down, 1)),
    Call("experts, up, prefill of 2048", TRITON, MATMUL, partial(up, 2048)),
    Call("experts, down, prefill of 2048", TRITON, MATMUL, partial(down, 2048)),
)
