"""`route_edited` in Triton; rules and signature are those of `gptoss_kernels.route_edited`.

The steps of a program are read on the GPU, by one program a token, so that a captured graph stays
valid when they change. Everything is reckoned in float32. Where somebody looks in between or wants
gradients, the plain body runs with this backend's `weigh`, whose bits untouched tokens have here.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from gptoss_kernels import route_edited as plain
from gptoss_kernels.route import Route
from gptoss_kernels.route_edited import RouteProgram, RouteTap
from gptoss_kernels.triton import route
from gptoss_kernels.triton.launch import launch
from gptoss_kernels.triton.linear import check
from gptoss_kernels.triton.route import order, softmax, weigh

BAN, BIAS, SWAP, STEER = (tl.constexpr(op) for op in plain.ON_LOGITS)
SET_K, REPLAY, FORCE = (tl.constexpr(op) for op in plain.ON_CHOICE)
AROUND, STEERED = tl.constexpr(plain.AROUND), tl.constexpr(plain.STEERED)


def route_edited(
    logits: Float[Tensor, "batch pos expert"],
    k: int,
    program: RouteProgram,
    *,
    tap: RouteTap | None = None,
    weigh: plain.Weigh = weigh,
) -> Route:
    """Choose and weigh under a program; slots beyond a token's own k have weight 0.

    Another `weigh` than this backend's takes the plain body.
    """
    check("route_edited", logits=logits)
    graph = torch.is_grad_enabled() and logits.requires_grad
    if any(tap or ()) or graph or weigh is not route.weigh:
        return plain.route_edited(logits, k, program, tap=tap, weigh=weigh)
    experts, width = logits.shape[-1], program.width
    if not 1 <= k <= width <= experts:
        raise ValueError(
            f"route_edited: expected 1 <= k <= width <= {experts} experts; got k = {k}, "
            f"width = {width}"
        )
    shape, tokens = logits.shape[:-1], logits.shape[:-1].numel()
    indices = torch.empty(*shape, width, dtype=torch.int64, device=logits.device)
    weights = torch.empty(*shape, width, dtype=torch.float32, device=logits.device)
    recorded, given = (
        None if each is None else each.expand(*shape, width).contiguous()
        for each in (program.recorded, program.recorded_weights)
    )
    warps = 4 if experts <= 32 else 16
    launch(_kernel, (tokens,), logits.contiguous(), program.op,
           program.tokens.contiguous().view(torch.uint8), program.table.contiguous(), program.k,
           recorded, given, indices, weights, experts, k, len(program.op), width, tokens,
           EXPERTS=triton.next_power_of_2(experts), num_warps=warps)  # fmt: skip
    return Route(indices, weights)


@triton.jit
def _places(priority):
    """How many are above each."""
    return tl.sum((priority[None, :] > priority[:, None]).to(tl.int32), 1)


@triton.jit
def _steer(scores, table, real):
    scores -= tl.max(scores, 0)
    scores -= tl.log(tl.sum(tl.where(real, tl.exp(scores), 0.0), 0))
    finite = tl.abs(scores) < float("inf")
    top = tl.max(scores, 0) + STEERED
    bottom = tl.min(tl.where(finite, scores, float("inf")), 0) - STEERED
    steered = tl.where(table > 0, top, tl.where(table < 0, bottom, scores))
    return tl.where(finite, steered, scores)


@triton.jit
def _edit(scores, op, table, real):
    """One step on the logits."""
    if op == BAN:
        scores = tl.where(table > 0, float("-inf"), scores)
    elif op == BIAS:
        scores += table
    elif op == SWAP:
        scores = tl.gather(scores, table.to(tl.int32), 0)
    else:
        scores = _steer(scores, table, real)
    return tl.where(real, scores, float("-inf"))


@triton.jit
def _recorded_first(rank, recorded_at, e, n, width):
    """Ranks with the recorded experts above all others, in recorded order."""
    for nth in range(width):
        slot = width - 1 - nth
        rank = tl.where(e == tl.load(recorded_at + slot), 2 * n - slot, rank)
    return rank


@triton.jit
def _replayed(weights, place, recorded_at, given_at, e, width):
    """Recorded weights, if the experts are the recorded ones and weights were recorded."""
    same, any_given = width == width, width < 0
    for slot in range(width):
        expert = tl.load(recorded_at + slot).to(tl.int32)
        own = tl.max(tl.where((place == slot) & (e == expert), 1, 0), 0) > 0  # pyright: ignore
        same = same & (own | (expert < 0))
        any_given = any_given | (tl.load(given_at + slot) >= 0)
    if same & any_given:
        for slot in range(width):
            given = tl.maximum(tl.load(given_at + slot).to(tl.float32), 0.0)
            weights = tl.where(place == slot, given, weights)
    return weights


@triton.jit
def _kernel(
    logits_ptr, op_ptr, tokens_ptr, table_ptr, k_ptr, recorded_ptr, given_ptr,
    indices_ptr, weights_ptr, n, k, steps, width, tokens, EXPERTS: tl.constexpr,
):  # fmt: skip
    """One token: the steps on its logits, its choice and its weights."""
    token, e = tl.program_id(0).to(tl.int64), tl.arange(0, EXPERTS)
    real, at = e < n, token * width
    scores = tl.load(logits_ptr + token * n + e, mask=real, other=float("-inf")).to(tl.float32)
    count = k
    for step in range(steps):
        op = tl.load(op_ptr + step)
        if tl.load(tokens_ptr + step * tokens + token) != 0:
            if op <= STEER:
                table = tl.load(table_ptr + step * n + e, mask=real, other=0.0)
                scores = _edit(scores, op, table, real)
            elif op == SET_K:
                count = tl.load(k_ptr + step)
            elif op == REPLAY:  # noqa: SIM102 (None is known when compiling, the code is not)
                if recorded_ptr is not None:
                    recorded = tl.load(recorded_ptr + at + e, mask=e < width, other=-1)
                    count = tl.sum((recorded >= 0).to(tl.int32), 0)
    rank = tl.where(real, n - _places(order(scores, e, n)), -1)
    alive, priority, forced, by_logit = scores > float("-inf"), rank, rank * 0, 0
    for step in range(steps):
        op = tl.load(op_ptr + step)
        if tl.load(tokens_ptr + step * tokens + token) != 0:
            if op == REPLAY:
                if recorded_ptr is not None:
                    first = _recorded_first(rank, recorded_ptr + at, e, n, width)
                    priority = tl.where(alive, first, rank)
            elif op == FORCE:
                table = tl.load(table_ptr + step * n + e, mask=real, other=0.0)
                forced = tl.where((table > 0) & alive, 1, forced)
                by_logit = 1
    place = _places(priority + 3 * n * forced)
    if by_logit == 1:
        place = _places(rank + 3 * n * (place < count).to(tl.int32))  # pyright: ignore
    weights = softmax(scores, place, count, 0)  # pyright: ignore
    for step in range(steps):
        op = tl.load(op_ptr + step)
        touched = tl.load(tokens_ptr + step * tokens + token) != 0
        if touched & (op == REPLAY):  # noqa: SIM102
            if given_ptr is not None:
                weights = _replayed(weights, place, recorded_ptr + at, given_ptr + at, e, width)
    for step in range(steps):
        op = tl.load(op_ptr + step)
        touched = tl.load(tokens_ptr + step * tokens + token) != 0
        if touched & (op > FORCE):
            table = tl.load(table_ptr + step * n + e, mask=real, other=0.0)
            weights = tl.where(table > 0, 0.0, weights)
            total = tl.sum(weights, 0)
            if (op == AROUND) & (total > 0):  # pyright: ignore
                weights = tl.div_rn(weights, tl.broadcast_to(total, weights.shape))
    chosen = real & (place < width)
    tl.store(indices_ptr + at + place, e.to(tl.int64), mask=chosen)
    tl.store(weights_ptr + at + place, weights, mask=chosen)
