"""`attention` in Triton; formula, signature and taps are those of `gptoss_kernels.attention`.

A row (one query of one head) has the same bits whatever the batch, the padding, the chunk, the
cache or the taps. z always comes from the fused kernel; a tap that wants scores or patterns has
them made beside it, and only rows that it changed are softened and mixed anew. Edits that are data
(`AttentionEdits`) are read by the kernels themselves.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gptoss_kernels.attention import AttentionTap
from gptoss_kernels.triton import attention_gradient as gradient
from gptoss_kernels.triton import attention_pattern as cube
from gptoss_kernels.triton.attention_call import Mixed, Seen, attend, see


class AttentionEdits(NamedTuple):
    """Changes as data; None changes nothing. Rows they leave alone keep their bits."""

    gain: Float[Tensor, "..."] | None = None
    """[head] or [batch, head, query]; z is multiplied by it, once rounded: the bits of a hook"""
    hidden: Bool[Tensor, "..."] | None = None
    """[batch, key] or [batch, head, key]; keys that may not be seen"""
    queries: Int[Tensor, " chosen"] | None = None
    """queries whose pattern is replaced, by index"""
    pattern: Float[Tensor, "batch head chosen key"] | None = None
    """the rows that take its place"""


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
    edits: AttentionEdits | None = None,
) -> Float[Tensor, "batch query head d_head"]:
    """Mix the values each query sees; positions below 0 mark padding. Same dtype as `q`."""
    _check(q, k, v, sinks, query_pos, key_pos)
    tap, edits = tap or AttentionTap(), edits or AttentionEdits()
    seen = see(query_pos, key_pos, window, edits.hidden)
    gain = _gain(edits.gain, q)
    if tap.scores is not None or tap.pattern is not None:
        z = _observed(q, k, v, sinks, seen, gain, tap)
    else:
        z, mass = _Attend.apply(q, k, v, sinks, seen, gain)  # pyright: ignore
        if tap.sink is not None:
            tap.sink(mass)
    if edits.queries is not None:
        z = _replaced(z, v, seen, gain, edits)
    return z


def rows(
    q: Float[Tensor, "batch query head d_head"],
    k: Float[Tensor, "batch key kv_head d_head"],
    sinks: Float[Tensor, " head"],
    query_pos: Int[Tensor, "batch query"],
    key_pos: Int[Tensor, "batch key"],
    queries: Int[Tensor, " chosen"],
    *,
    window: int | None = None,
) -> Float[Tensor, "batch head chosen key"]:
    """Pattern of chosen queries (by index): the bits a pattern tap shows, never the cube."""
    _check(q, k, k, sinks, query_pos, key_pos)
    seen = see(query_pos[:, queries], key_pos, window)
    return _Pattern.apply(q[:, queries], k, sinks, seen, None)[0]  # pyright: ignore


def _check(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, query_pos: Tensor, key_pos: Tensor):
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"attention: {q.shape[2]} query heads over {k.shape[2]} key/value heads")
    expected = {
        "k": (k, (q.shape[0], k.shape[1], k.shape[2], q.shape[3])), "v": (v, k.shape),
        "sinks": (sinks, (q.shape[2],)), "query_pos": (query_pos, q.shape[:2]),
        "key_pos": (key_pos, k.shape[:2]),
    }  # fmt: skip
    for name, (x, shape) in expected.items():
        if tuple(x.shape) != tuple(shape) or x.device != q.device:
            raise ValueError(
                f"attention: expected {name} {tuple(shape)} on {q.device}; "
                f"got {tuple(x.shape)} on {x.device}"
            )


def _gain(gain: Tensor | None, q: Tensor) -> Tensor | None:
    if gain is None:
        return None
    batch, n_query, heads, _ = q.shape
    if gain.shape not in ((heads,), (batch, heads, n_query)):
        raise ValueError(
            f"attention: expected a gain of {(heads,)} or {(batch, heads, n_query)}; "
            f"got {tuple(gain.shape)}"
        )
    gain = gain[None, :, None] if gain.ndim == 1 else gain
    return gain.float().expand(batch, heads, n_query).contiguous()


def _differentiated(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def _observed(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, seen: Seen, gain: Tensor | None,
    tap: AttentionTap,
) -> Tensor:  # fmt: skip
    """With cubes made for those who look; z of rows that nobody changed stays the fused one."""
    with torch.no_grad():
        fused = attend(q, k, v, sinks, seen, gain)
    changed = None
    if tap.scores is None:
        pattern, mass = _Pattern.apply(q, k, sinks, seen, fused)  # pyright: ignore
    else:
        scores = _Scores.apply(q, k, seen)
        given, changed = _shown(tap.scores, scores, lambda: cube.score(q, k, seen))
        asked = (
            tap.pattern is not None or changed is not None or _differentiated(given, sinks, v, gain)
        )
        pattern, mass = None, fused.mass
        if asked:
            pattern, mass = _Soften.apply(given, sinks, q, k, seen, fused, changed)
    if tap.sink is not None:
        tap.sink(mass)
    if pattern is None:
        assert fused.z is not None
        return fused.z
    if tap.pattern is not None:
        before = changed

        def plain() -> Tensor:
            return _softened(given, sinks, q, k, seen, fused, before)[0]

        if tap.scores is None:
            given = None
        pattern, moved = _shown(tap.pattern, pattern, plain)
        changed = moved if changed is None else changed if moved is None else changed | moved
    return _Mix.apply(pattern, v, seen, fused.z, changed, gain)  # pyright: ignore


def _shown(look, shown, plain) -> tuple[Tensor, Tensor | None]:
    """What a tap returns, and which rows it changed; None where it only looked."""
    version = None if shown.is_inference() else shown._version
    given = look(shown)
    if given is shown and version is not None and given._version == version:
        return given, None
    with torch.no_grad():
        changed = cube.rows_apart(given, plain())
    return given, changed if bool(changed.any()) else None


def _softened(
    scores: Tensor | None, sinks: Tensor, q: Tensor, k: Tensor, seen: Seen, fused: Mixed,
    changed: Tensor | None,
) -> tuple[Tensor, Mixed]:  # fmt: skip
    """Pattern and sums: the plain ones, and in changed rows those of `scores`."""
    pattern = cube.find_pattern(q, k, seen, fused.lse)
    if changed is None or scores is None:
        return pattern, fused
    sums = fused._replace(mass=fused.mass.clone(), lse=fused.lse.clone())
    cube.soften(scores, sinks, seen, changed, (pattern, sums))
    return pattern, sums


def _replaced(
    z: Tensor, v: Tensor, seen: Seen, gain: Tensor | None, edits: AttentionEdits
) -> Tensor:
    """z with the rows of some queries mixed by a given pattern."""
    assert edits.queries is not None
    expected = (z.shape[0], z.shape[2], len(edits.queries), v.shape[1])
    if edits.pattern is None or edits.pattern.shape != expected:
        got = None if edits.pattern is None else tuple(edits.pattern.shape)
        raise ValueError(f"attention: expected edits.pattern {expected}; got {got}")
    pattern = edits.pattern.float()
    room = z.new_empty((z.shape[0], len(edits.queries), *z.shape[2:]))
    every = torch.ones(expected[:3], dtype=torch.bool, device=z.device)
    gain = None if gain is None else gain[:, :, edits.queries].contiguous()
    mixed = _Mix.apply(pattern, v, seen, room, every, gain)
    return z.index_copy(1, edits.queries, mixed)  # pyright: ignore


# ---- autograd -----------------------------------------------------------------------------------


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, sinks, seen: Seen, gain: Tensor | None):
        out = attend(q, k, v, sinks, seen, gain)
        ctx.save_for_backward(q, k, v, sinks, gain, out.z, out.mass, out.lse)
        ctx.seen = seen
        return out.z, out.mass

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, grad_mass):  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, sinks, gain, z, mass, lse = ctx.saved_tensors
        *needs, _, to_gain = ctx.needs_input_grad
        found = None
        if to_gain:  # z as it would be without, where the gain may be 0
            found = gradient.of_gain(attend(q, k, v, sinks, ctx.seen).z, grad)
        given, out = (grad, grad_mass, gain), Mixed(z, mass, lse)
        return *gradient.of_attention((q, k, v, sinks), ctx.seen, out, given, needs), None, found


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, seen: Seen):
        ctx.save_for_backward(q, k)
        ctx.seen = seen
        return cube.score(q, k, seen)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k = ctx.saved_tensors
        grad = grad.masked_fill(cube.score(q, k, ctx.seen) == cube.HIDDEN.value, 0)
        return *gradient.of_scores(q, k, grad, ctx.needs_input_grad[:2]), None


class _Pattern(torch.autograd.Function):
    """Sums are found by the way where they are not given."""

    @staticmethod
    def forward(ctx, q, k, sinks, seen: Seen, fused: Mixed | None):
        fused = attend(q, k, None, sinks, seen) if fused is None else fused
        ctx.save_for_backward(q, k, sinks, fused.mass, fused.lse)
        ctx.seen = seen
        return cube.find_pattern(q, k, seen, fused.lse), fused.mass

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, grad_mass):  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, sinks, mass, lse = ctx.saved_tensors
        pattern = cube.find_pattern(q, k, ctx.seen, lse)
        to_scores, to_sinks = gradient.of_softmax(pattern, mass, grad, grad_mass)
        to_q, to_k = gradient.of_scores(q, k, to_scores, ctx.needs_input_grad[:2])
        return to_q, to_k, to_sinks.to(sinks.dtype), None, None


class _Soften(torch.autograd.Function):
    """q and k only spare the softmax where scores were not changed; no gradient goes to them."""

    @staticmethod
    def forward(ctx, scores, sinks, q, k, seen: Seen, fused: Mixed, changed: Tensor | None):
        pattern, sums = _softened(scores, sinks, q, k, seen, fused, changed)
        ctx.save_for_backward(scores, sinks, sums.mass, sums.lse)
        return pattern, sums.mass

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, grad_mass):  # pyright: ignore[reportIncompatibleMethodOverride]
        scores, sinks, mass, lse = ctx.saved_tensors
        pattern = torch.exp2(scores / math.log(2) - lse[..., None])
        to_scores, to_sinks = gradient.of_softmax(pattern, mass, grad, grad_mass)
        return to_scores, to_sinks.to(sinks.dtype), *(None,) * 5


class _Mix(torch.autograd.Function):
    """`fused` z, its changed rows mixed anew."""

    @staticmethod
    def forward(
        ctx, pattern, v, seen: Seen, fused: Tensor, changed: Tensor | None, gain: Tensor | None
    ):
        ctx.save_for_backward(pattern, v, gain)
        z = fused.clone()
        if changed is not None:
            cube.mix(pattern, v, seen, changed, gain, z)
        return z

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        pattern, v, gain = ctx.saved_tensors
        needs = [ctx.needs_input_grad[i] for i in (0, 1, 5)]
        to_pattern, to_v, to_gain = gradient.of_mixture(pattern, v, gain, grad, needs)
        return to_pattern, to_v, None, None, None, to_gain
