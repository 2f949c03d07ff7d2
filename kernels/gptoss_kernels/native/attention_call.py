"""The steps of attention as calls of one C++ kernel: which inputs it has decides what it does.

    q, k, v      -> z, sink           fused, a few queries' scores at a time
    q, k         -> scores, or pattern and sink
    scores       -> pattern, sink
    pattern, v   -> z

Positions below 0 are padding. Scores and patterns are [batch, head, query, key] float32; hidden
keys hold float32's minimum in scores and 0 in patterns.
"""

import ctypes

import torch
from torch import Tensor

from gptoss_kernels.native.library import DTYPES, kernels


class _Call(ctypes.Structure):
    """GwAttention in src/abi.h; what is not given is null or 0."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in (
            "q", "k", "v", "z", "sinks", "query_pos", "key_pos",
            "scores_in", "pattern_in", "scores", "pattern", "sink",
        )),
        *((name, ctypes.c_int64) for name in (
            "batch", "n_query", "n_key", "heads", "kv_heads", "d_head", "window",
            "q_batch", "q_place", "k_batch", "k_place", "v_batch", "v_place", "dtype",
        )),
    )  # fmt: skip


def attend(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, query_pos: Tensor, key_pos: Tensor, window: int
) -> tuple[Tensor, Tensor]:
    """Give z, in the dtype of q, and what each row's sink absorbs."""
    dtype = q.dtype
    q, k, v = _alike(q, k, v)
    sinks, query_pos, key_pos = _plain(sinks), query_pos.contiguous(), key_pos.contiguous()
    z, sink = q.new_empty(q.shape), _empty(q)
    call = _seen(q, k, query_pos, key_pos, window)
    call.v, call.v_batch, call.v_place = v.data_ptr(), v.stride(0), v.stride(1)
    call.sinks, call.z, call.sink = sinks.data_ptr(), z.data_ptr(), sink.data_ptr()
    _run(call)
    return z if z.dtype == dtype else z.to(dtype), sink


def score(q: Tensor, k: Tensor, query_pos: Tensor, key_pos: Tensor, window: int) -> Tensor:
    """Give the scores before the softmax."""
    q, k = _alike(q, k)
    query_pos, key_pos, scores = query_pos.contiguous(), key_pos.contiguous(), _empty(q, k)
    call = _seen(q, k, query_pos, key_pos, window)
    call.scores = scores.data_ptr()
    _run(call)
    return scores


def find_pattern(
    q: Tensor, k: Tensor, sinks: Tensor, query_pos: Tensor, key_pos: Tensor, window: int
) -> tuple[Tensor, Tensor]:
    """Give pattern and sink without keeping the scores."""
    q, k = _alike(q, k)
    sinks, query_pos, key_pos = _plain(sinks), query_pos.contiguous(), key_pos.contiguous()
    pattern, sink = _empty(q, k), _empty(q)
    call = _seen(q, k, query_pos, key_pos, window)
    call.sinks, call.pattern, call.sink = sinks.data_ptr(), pattern.data_ptr(), sink.data_ptr()
    _run(call)
    return pattern, sink


def soften(scores: Tensor, sinks: Tensor, key_pos: Tensor) -> tuple[Tensor, Tensor]:
    """Give pattern and sink of scores as they are, hidden keys included."""
    scores, sinks, key_pos = _plain(scores), _plain(sinks), key_pos.contiguous()
    pattern, sink = torch.empty_like(scores), scores.new_empty(scores.shape[:3])
    call = _given(scores, key_pos)
    call.scores_in, call.sinks = scores.data_ptr(), sinks.data_ptr()
    call.pattern, call.sink = pattern.data_ptr(), sink.data_ptr()
    _run(call)
    return pattern, sink


def mix(pattern: Tensor, v: Tensor, key_pos: Tensor, dtype: torch.dtype) -> Tensor:
    """Give z [batch, query, head, d_head] of a pattern as it is, in `dtype`."""
    wide = v.dtype != dtype or dtype not in DTYPES
    (v,) = _alike(v.float() if wide else v)
    pattern, key_pos = _plain(pattern), key_pos.contiguous()
    batch, heads, n_query, _ = pattern.shape
    z = v.new_empty((batch, n_query, heads, v.shape[3]))
    call = _given(pattern, key_pos)
    call.kv_heads, call.d_head, call.dtype = v.shape[2], v.shape[3], DTYPES[v.dtype]
    call.v, call.v_batch, call.v_place = v.data_ptr(), v.stride(0), v.stride(1)
    call.pattern_in, call.z = pattern.data_ptr(), z.data_ptr()
    _run(call)
    return z.to(dtype)


def _seen(q: Tensor, k: Tensor, query_pos: Tensor, key_pos: Tensor, window: int) -> _Call:
    """A call in which positions and the window decide what a query sees."""
    batch, n_query, heads, d_head = q.shape
    call = _Call(batch=batch, n_query=n_query, n_key=k.shape[1], heads=heads, d_head=d_head)
    call.kv_heads, call.window, call.dtype = k.shape[2], window, DTYPES[q.dtype]
    call.q, call.q_batch, call.q_place = q.data_ptr(), q.stride(0), q.stride(1)
    call.k, call.k_batch, call.k_place = k.data_ptr(), k.stride(0), k.stride(1)
    call.query_pos, call.key_pos = query_pos.data_ptr(), key_pos.data_ptr()
    return call


def _given(cube: Tensor, key_pos: Tensor) -> _Call:
    """A call that takes scores or a pattern as they are; positions only order the sums."""
    batch, heads, n_query, n_key = cube.shape
    call = _Call(batch=batch, n_query=n_query, n_key=n_key, heads=heads, kv_heads=heads, d_head=1)
    call.key_pos = key_pos.data_ptr()
    return call


def _run(call: _Call) -> None:
    if call.batch and call.n_query and call.heads:
        kernels().attention(ctypes.byref(call))


def _alike(*tensors: Tensor) -> list[Tensor]:
    """One dtype that kernels read for all, heads of each place side by side."""
    dtype = tensors[0].dtype
    if dtype not in DTYPES or any(x.dtype != dtype for x in tensors):
        tensors = tuple(x.float() for x in tensors)
    return [
        x if x.stride(3) == 1 and x.stride(2) == x.shape[3] else x.contiguous() for x in tensors
    ]


def _plain(x: Tensor) -> Tensor:
    return x.float().contiguous()


def _empty(q: Tensor, k: Tensor | None = None) -> Tensor:
    """Room for a number a row, or a row and key."""
    shape = (q.shape[0], q.shape[2], q.shape[1])
    return q.new_empty(shape if k is None else (*shape, k.shape[1]), dtype=torch.float32)
