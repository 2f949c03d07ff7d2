"""`attention` in C++; formula, signature and taps are those of `gptoss_kernels.attention`.

A row (one query of one head) has the same bits whatever the batch, the padding, the chunk, the
threads or the taps. Unobserved, the scores of a few queries are the most that is held. A tap that
wants scores or patterns gets the whole cube: then scores, softmax and mixing run one after the
other, each with the arithmetic of the fused call.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gptoss_kernels.attention import AttentionTap
from gptoss_kernels.native import attention_call as call
from gptoss_kernels.native import attention_gradient as gradient
from gptoss_kernels.native.ops import define

EVERY_KEY = 2**63 - 1
"""A window that hides nothing."""


def attention(
    q: Float[Tensor, "batch query head d_head"],
    k: Float[Tensor, "batch key kv_head d_head"],
    v: Float[Tensor, "batch key kv_head d_head"],
    sinks: Float[Tensor, " head"],
    query_pos: Int[Tensor, "batch query"],
    key_pos: Int[Tensor, "batch key"],
    *,
    window: int | None = None,
    tap: AttentionTap | None = None,
) -> Float[Tensor, "batch query head d_head"]:
    """Mix the values each query sees; positions below 0 mark padding. Same dtype as `q`."""
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"attention: {q.shape[2]} query heads over {k.shape[2]} key/value heads")
    window = EVERY_KEY if window is None else window
    if tap is None or (tap.scores is None and tap.pattern is None):
        z, sink = _attend(q, k, v, sinks, query_pos, key_pos, window)
        if tap is not None and tap.sink is not None:
            tap.sink(sink)
        return z
    if tap.scores is None:
        pattern, sink = _pattern(q, k, sinks, query_pos, key_pos, window)
    else:
        scores = tap.scores(_score(q, k, query_pos, key_pos, window))
        pattern, sink = _soften(scores, sinks, key_pos)
    if tap.sink is not None:
        tap.sink(sink)
    if tap.pattern is not None:
        pattern = tap.pattern(pattern)
    return _mix(pattern, v, key_pos, q.dtype)


def _row_shape(q: Tensor) -> tuple[int, ...]:
    return q.shape[0], q.shape[2], q.shape[1]


def _attend_fake(q, k, v, sinks, query_pos, key_pos, window):
    return q.new_empty(q.shape), q.new_empty(_row_shape(q), dtype=torch.float32)


def _keep_attend(ctx, inputs, output) -> None:
    *tensors, ctx.window = inputs
    ctx.save_for_backward(*tensors)


def _attend_grad(ctx, grad: Tensor, grad_sink: Tensor):
    q, k, v, sinks, query_pos, key_pos = ctx.saved_tensors
    to = gradient.of_attention(q, k, v, sinks, query_pos, key_pos, ctx.window, grad, grad_sink)
    assert to.v is not None
    return *_like((q, k, v, sinks), (to.q, to.k, to.v, to.sinks)), None, None, None


def _score_fake(q, k, query_pos, key_pos, window):
    return q.new_empty((*_row_shape(q), k.shape[1]), dtype=torch.float32)


def _score_grad(ctx, grad: Tensor):
    q, k, query_pos, key_pos = ctx.saved_tensors
    to = gradient.of_scores(q, k, query_pos, key_pos, ctx.window, grad)
    return *_like((q, k), to), None, None, None


def _pattern_fake(q, k, sinks, query_pos, key_pos, window):
    pattern = q.new_empty((*_row_shape(q), k.shape[1]), dtype=torch.float32)
    return pattern, pattern.new_empty(_row_shape(q))


def _pattern_grad(ctx, grad: Tensor, grad_sink: Tensor):
    q, k, sinks, query_pos, key_pos = ctx.saved_tensors
    to = gradient.of_attention(q, k, None, sinks, query_pos, key_pos, ctx.window, grad, grad_sink)
    return *_like((q, k, sinks), (to.q, to.k, to.sinks)), None, None, None


def _soften_fake(scores, sinks, key_pos):
    return torch.empty_like(scores), scores.new_empty(scores.shape[:3])


def _keep_inputs(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _soften_grad(ctx, grad: Tensor, grad_sink: Tensor):
    scores, sinks, key_pos = ctx.saved_tensors
    pattern, sink = call.soften(scores, sinks, key_pos)
    to_scores, to_sinks = gradient.of_softmax(pattern, sink, grad, grad_sink)
    return to_scores, to_sinks.to(sinks.dtype), None


def _mix_fake(pattern, v, key_pos, dtype):
    return v.new_empty((v.shape[0], pattern.shape[2], pattern.shape[1], v.shape[3]), dtype=dtype)


def _keep_mix(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:2])


def _mix_grad(ctx, grad: Tensor):
    pattern, v = ctx.saved_tensors
    to_pattern, to_v = gradient.of_mixture(pattern, v, grad)
    return to_pattern, to_v.to(v.dtype), None, None


def _like(inputs: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(g.to(x.dtype) for x, g in zip(inputs, gradients, strict=True))


_attend = define(
    "attend(Tensor q, Tensor k, Tensor v, Tensor sinks, Tensor query_pos, Tensor key_pos, "
    "int window) -> (Tensor, Tensor)",
    call.attend, fake=_attend_fake, keep=_keep_attend, backward=_attend_grad,
)  # fmt: skip
_score = define(
    "score(Tensor q, Tensor k, Tensor query_pos, Tensor key_pos, int window) -> Tensor",
    call.score, fake=_score_fake, keep=_keep_attend, backward=_score_grad,
)  # fmt: skip
_pattern = define(
    "pattern(Tensor q, Tensor k, Tensor sinks, Tensor query_pos, Tensor key_pos, int window) "
    "-> (Tensor, Tensor)",
    call.find_pattern, fake=_pattern_fake, keep=_keep_attend, backward=_pattern_grad,
)  # fmt: skip
_soften = define(
    "soften(Tensor scores, Tensor sinks, Tensor key_pos) -> (Tensor, Tensor)",
    call.soften, fake=_soften_fake, keep=_keep_inputs, backward=_soften_grad,
)  # fmt: skip
_mix = define(
    "mix(Tensor pattern, Tensor v, Tensor key_pos, ScalarType dtype) -> Tensor",
    call.mix, fake=_mix_fake, keep=_keep_mix, backward=_mix_grad,
)  # fmt: skip
