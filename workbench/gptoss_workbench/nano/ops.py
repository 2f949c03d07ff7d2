"""The expensive operations of training, with gradients written by hand for one CPU core.

Blockwise attention with sinks: queries are taken in blocks of 32 tokens, each with only the keys it
can see (causal, or the last `window`), so most of what the mask would discard is never computed.
The sink is one more key whose score is the head's learned number and whose value is zero.

Expert feed-forward: one expert after the other, so that its rows stay in cache.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 32
softmax_backward = torch.ops.aten._softmax_backward_data
ALPHA = 1.702


@lru_cache(maxsize=512)
def _block_mask(first: int, last: int, low: int, window: int, group: int) -> Tensor:
    """Additive [queries x group, 1 + keys]: the sink is always visible, keys by position."""
    query = torch.arange(first, last)[:, None]
    key = torch.arange(low, last)[None]
    seen = (key <= query) & (query - key < window)
    mask = torch.zeros(last - first, 1 + last - low)
    mask[:, 1:].masked_fill_(~seen, -1e9)
    return mask.repeat_interleave(group, 0)


def _blocks(tokens: int, window: int):
    for first in range(0, tokens, BLOCK):
        yield first, min(first + BLOCK, tokens), max(0, first - window + 1)


class SinkAttention(torch.autograd.Function):
    """softmax([sink, q k]) [0, v] per query block.

    q [n, token x group, d + 1], already scaled, its last feature the head's sink;
    k, v [n, token, d]. The rows of a token's `group` query heads lie side by side.
    """

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, group: int, window: int) -> Tensor:
        n, rows, d = q.shape[0], q.shape[1], k.shape[-1]
        out, patterns = q.new_empty(n, rows, d), []
        k, v = _with_sink(k, 1.0), _with_sink(v, 0.0)[..., :d].contiguous()
        for first, last, low in _blocks(rows // group, window):
            at, keys, values = slice(first * group, last * group), *_seen(k, v, low, last)
            mask = _block_mask(first, last, low, window, group)
            p = torch.softmax(torch.baddbmm(mask, q[:, at], keys.mT), -1)
            out[:, at] = torch.bmm(p, values)
            patterns.append(p)
        ctx.save_for_backward(q, k, v, *patterns)
        ctx.shape = group, window
        return out

    @staticmethod
    def backward(ctx, *grads: Tensor):
        (grad,) = grads
        q, k, v, *patterns = ctx.saved_tensors
        group, window = ctx.shape
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for (first, last, low), p in zip(
            _blocks(q.shape[1] // group, window), patterns, strict=True
        ):
            at, keys, values = slice(first * group, last * group), *_seen(k, v, low, last)
            g = grad[:, at]
            ds = softmax_backward(torch.bmm(g, values.mT), p, -1, torch.float32)
            dq[:, at] = torch.bmm(ds, keys)
            dk[:, 1 + low : 1 + last] += torch.bmm(ds.mT, q[:, at])[:, 1:]
            dv[:, 1 + low : 1 + last] += torch.bmm(p.mT, g)[:, 1:]
        return dq, dk[:, 1:, :-1], dv[:, 1:], None, None


def _with_sink(x: Tensor, feature: float) -> Tensor:
    """[n, token, d] -> [n, 1 + token, d + 1]: row 0 is the sink, the extra feature is its alone."""
    out = x.new_zeros(x.shape[0], x.shape[1] + 1, x.shape[2] + 1)
    out[:, 1:, :-1] = x
    out[:, 0, -1] = feature
    return out


def _seen(k: Tensor, v: Tensor, low: int, last: int) -> tuple[Tensor, Tensor]:
    if low == 0:
        return k[:, : 1 + last], v[:, : 1 + last]
    first, rest = slice(0, 1), slice(1 + low, 1 + last)
    return torch.cat([k[:, first], k[:, rest]], 1), torch.cat([v[:, first], v[:, rest]], 1)


class Experts(torch.autograd.Function):
    """y[t] = Σ_j weight[t, j] · down(swiglu(up(x[t])))  over the k experts chosen for token t.

    x [token, d], weight and chosen [token, k], w1 [expert, 2 ff, d] with the gate's rows first,
    w2 [expert, d, ff]. swiglu: gate · σ(α gate) · (up + 1), gate <= limit, |up| <= limit, which is
    silu(α gate) · (up + 1) / α: the 1 / α goes into the matrix product.
    """

    @staticmethod
    def forward(ctx, x, weight, chosen, w1, b1, w2, b2, limit: float) -> Tensor:
        order = chosen.flatten().argsort(stable=True)  # (token, j) pairs, expert after expert
        place = torch.empty_like(order)
        place[order] = torch.arange(order.numel())
        counts = torch.bincount(chosen.flatten(), minlength=w1.shape[0]).tolist()
        token, scale = order // chosen.shape[1], weight.flatten()[order, None]
        h, y = x.new_empty(order.numel(), w1.shape[1]), x.new_empty(order.numel(), w2.shape[1])
        for e, at in _rows(counts):
            row = h[at]
            torch.addmm(b1[e], x.index_select(0, token[at]), w1[e].mT, out=row)
            gate, up = row.chunk(2, -1)
            gate.clamp_(max=limit).mul_(ALPHA)
            up.clamp_(-limit, limit)
            act = _activation(row)
            torch.addmm(b2[e], act, w2[e].mT, alpha=1 / ALPHA, out=y[at]).mul_(scale[at])
        ctx.save_for_backward(x, w1, w2, b2, h, token, scale, place.view_as(chosen))
        ctx.counts, ctx.limit = counts, limit
        return F.embedding_bag(place.view_as(chosen), y, mode="sum")

    @staticmethod
    def backward(ctx, *grads: Tensor):
        (grad,) = grads
        x, w1, w2, b2, h, token, scale, place = ctx.saved_tensors
        dx, dscale = x.new_empty(h.shape[0], x.shape[1]), scale.new_empty(scale.shape[0])
        dw1, dw2 = torch.zeros_like(w1), torch.zeros_like(w2)
        db1, db2 = w1.new_zeros(w1.shape[:2]), torch.zeros_like(b2)
        for e, at in _rows(ctx.counts):
            g, weight = grad.index_select(0, token[at]), scale[at]
            act, dact = _activation(h[at]), g @ w2[e]
            dscale[at] = torch.addmv((act * dact).sum(1), g, b2[e], beta=1 / ALPHA)
            dh = _activation_grad(h[at], dact.mul_(weight), ctx.limit)
            torch.mm(g.mT, act.mul_(weight), out=dw2[e])
            torch.mm(dh.mT, x.index_select(0, token[at]), out=dw1[e])
            torch.mm(dh, w1[e], out=dx[at])
            db1[e], db2[e] = dh.sum(0), torch.mv(g.mT, weight[:, 0])
        dw2.mul_(1 / ALPHA)
        dx = F.embedding_bag(place, dx, mode="sum")
        return dx, dscale[place], None, dw1, db1, dw2, db2, None


def _rows(counts: list[int]):
    start = 0
    for e, count in enumerate(counts):
        if count:
            yield e, slice(start, start + count)
        start += count


def _activation(h: Tensor) -> Tensor:
    """α swiglu of rows [row, 2 ff] that hold α gate (clamped) and up (clamped)."""
    gate, up = h.chunk(2, -1)
    silu = F.silu(gate)
    return silu.addcmul_(silu, up)


def _activation_grad(h: Tensor, dact: Tensor, limit: float) -> Tensor:
    """The gradient of the rows before clamping; dact is that of α swiglu, times α."""
    gate, up = h.chunk(2, -1)
    dh = torch.empty_like(h)
    dgate, dup = dh.chunk(2, -1)
    torch.mul(dact, F.silu(gate), out=dup)
    dup.mul_(1 / ALPHA)
    dgate.copy_(torch.ops.aten.silu_backward(torch.addcmul(dact, dact, up), gate))
    return _unclamped(dh, h, limit)


def _unclamped(dh: Tensor, h: Tensor, limit: float) -> Tensor:
    """No gradient flows where a value sits at its limit; rare, so looked for first."""
    if h.abs().amax() >= limit:
        gate, up = h.chunk(2, -1)
        dgate, dup = dh.chunk(2, -1)
        dgate.masked_fill_(gate >= limit * ALPHA, 0.0)
        dup.masked_fill_(up.abs() >= limit, 0.0)
    return dh


class Normalize(torch.autograd.Function):
    """RMSNorm: weight · x / sqrt(mean(x²) + eps)."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        inverse = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
        unit = x * inverse
        ctx.save_for_backward(unit, inverse, weight)
        return unit * weight

    @staticmethod
    def backward(ctx, *grads: Tensor):
        (grad,) = grads
        unit, inverse, weight = ctx.saved_tensors
        dweight = (grad * unit).flatten(0, -2).sum(0)
        grad = grad * weight
        along = (grad * unit).mean(-1, keepdim=True)
        return torch.addcmul(grad, unit, along, value=-1).mul_(inverse), dweight, None
