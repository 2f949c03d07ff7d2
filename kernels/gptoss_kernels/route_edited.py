"""Routing under edits that are data: what a router decides while a RouteProgram changes it.

A program is a list of steps in the order they act, as plain tensors. Each step names the tokens it
touches and says one number of every expert (`table`) or of the token (`k`):

    on the logits     BAN      logit = -inf where table
                      BIAS     logit += table
                      SWAP     logit_e = logit_table[e]
                      STEER    s = log_softmax(logits); max(s) + 0.01 where table > 0,
                               min(s) - 0.01 where table < 0    (SteerMoE, arXiv 2509.09660)
    on the choice     SET_K    the token takes k experts
                      REPLAY   the token takes the recorded experts, in the recorded order
                      FORCE    experts in the table are among the k; ranked by logit
    on the weights    ZERO     weight = 0 where table
                      AROUND   weight = 0 where table, what is left divided by its sum

The choice is made from the edited logits and the weights (softmax over the choice) from the edited
choice, so a step on the logits never undoes one on the choice, nor that one on the weights. An
expert whose logit is -inf is neither forced nor replayed: the runner-up takes its slot. A token
no step touches keeps its choice and weights bit for bit.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gptoss_kernels.rms_norm import Look
from gptoss_kernels.route import Route, choose, weigh

BAN, BIAS, SWAP, STEER, SET_K, REPLAY, FORCE, ZERO, AROUND = range(9)
"""Codes of `RouteProgram.op`."""
ON_LOGITS, ON_CHOICE, ON_WEIGHTS = (BAN, BIAS, SWAP, STEER), (SET_K, REPLAY, FORCE), (ZERO, AROUND)
STEERED = 0.01
"""Nats by which SteerMoE puts an expert above or below all others."""
Weigh = Callable[[Tensor, Tensor], Tensor]
"""(logits, indices) -> weights, as `gptoss_kernels.route.weigh`"""


class RouteProgram(NamedTuple):
    """The steps of one layer."""

    op: Int[Tensor, " step"]
    """int32, one of the codes above"""
    tokens: Bool[Tensor, "step batch pos"]
    """where a step acts"""
    table: Float[Tensor, "step expert"]
    """float32: 1 where an expert is named (BAN, FORCE, ZERO, AROUND), nats (BIAS), the expert whose
    logit it takes (SWAP), +1 or -1 (STEER), 0 else"""
    k: Int[Tensor, " step"]
    """int32, experts a token takes (SET_K), else 0"""
    width: int
    """slots of the result: the most experts any token may take here"""
    recorded: Int[Tensor, "batch pos k"] | None = None
    """int64 [batch, pos, width], experts that REPLAY gives, -1 behind the last"""
    recorded_weights: Float[Tensor, "batch pos k"] | None = None
    """float32, weights of recorded experts; -1 where the softmax is wanted"""


class RouteTap(NamedTuple):
    """Where a caller may look into `route_edited`; None costs nothing."""

    logits: Look | None = None
    """[batch, pos, expert], after the steps on the logits"""
    indices: Look | None = None
    """[batch, pos, k], after the steps on the choice"""
    weights: Look | None = None
    """[batch, pos, k], after all steps"""


def route_edited(
    logits: Float[Tensor, "batch pos expert"],
    k: int,
    program: RouteProgram,
    *,
    tap: RouteTap | None = None,
    weigh: Weigh = weigh,
) -> Route:
    """Choose and weigh under a program; slots beyond a token's own k have weight 0.

    `weigh` is the backend's own, so that untouched tokens keep its bits.
    """
    tap = tap or RouteTap()
    logits = edit_logits(logits, program)
    logits = tap.logits(logits) if tap.logits else logits
    count = counts(logits, k, program)
    indices = choose_edited(logits, count, program)
    indices = tap.indices(indices) if tap.indices else indices
    weights = weigh_edited(logits, indices, count, k, program, weigh)
    return Route(indices, tap.weights(weights) if tap.weights else weights)


def edit_logits(
    logits: Float[Tensor, "batch pos expert"], program: RouteProgram
) -> Float[Tensor, "batch pos expert"]:
    """The steps on the logits, in order."""
    for op, tokens, table, _ in _steps(program, ON_LOGITS):
        if op == BAN:
            changed = logits.masked_fill(table > 0, -torch.inf)
        elif op == BIAS:
            changed = logits + table
        elif op == SWAP:
            changed = logits[..., table.long()]
        else:
            changed = _steered(logits, table)
        logits = torch.where(tokens[..., None], changed, logits)
    return logits


def _steered(logits: Tensor, table: Tensor) -> Tensor:
    scores = torch.log_softmax(logits, -1)
    finite = scores.isfinite()
    top = scores.amax(-1, keepdim=True) + STEERED
    bottom = scores.masked_fill(~finite, torch.inf).amin(-1, keepdim=True) - STEERED
    steered = torch.where(table > 0, top, torch.where(table < 0, bottom, scores))
    return torch.where(finite, steered, scores)


def counts(logits: Tensor, k: int, program: RouteProgram) -> Int[Tensor, "batch pos"]:
    """How many experts each token takes."""
    count = torch.full(logits.shape[:-1], k, device=logits.device)
    for op, tokens, _, size in _steps(program, (SET_K, REPLAY)):
        if op == REPLAY:
            assert program.recorded is not None
            changed = (program.recorded >= 0).sum(-1)
        else:
            changed = torch.full_like(count, size)
        count = torch.where(tokens, changed, count)
    return count


def choose_edited(
    logits: Float[Tensor, "batch pos expert"],
    count: Int[Tensor, "batch pos"],
    program: RouteProgram,
) -> Int[Tensor, "batch pos k"]:
    """The chosen experts, best first; behind a token's own count, its runners-up."""
    natural = choose(logits, program.width)
    steps = list(_steps(program, (REPLAY, FORCE)))
    if not steps:
        return natural
    n = logits.shape[-1]
    places = torch.sort(logits.detach(), dim=-1, descending=True, stable=True).indices
    ascending = torch.arange(n, 0, -1, device=logits.device).expand_as(places)
    rank = torch.empty_like(places).scatter_(-1, places, ascending)  # n for the best ... 1
    gone = logits == -torch.inf
    priority, forced = rank, torch.zeros_like(gone)
    by_logit = torch.zeros(rank.shape[:-1], dtype=torch.bool, device=rank.device)
    for op, tokens, table, _ in steps:
        if op == REPLAY:
            changed = torch.where(gone, rank, _recorded_first(rank, program))
            priority = torch.where(tokens[..., None], changed, priority)
        else:
            forced = forced | (tokens[..., None] & (table > 0) & ~gone)
            by_logit = by_logit | tokens
    priority = priority + 3 * n * forced
    chosen = priority >= priority.sort(-1, descending=True).values.gather(-1, count[..., None] - 1)
    priority = torch.where(by_logit[..., None], rank + 3 * n * chosen, priority)
    edited = choose(priority, program.width)
    return torch.where(_any(steps)[..., None], edited, natural)


def _recorded_first(rank: Tensor, program: RouteProgram) -> Tensor:
    """Ranks with the recorded experts above all others, in recorded order."""
    assert program.recorded is not None
    n, out = rank.shape[-1], rank.clone()
    for slot in reversed(range(program.recorded.shape[-1])):
        expert = program.recorded[..., slot, None]
        at = expert.clamp_min(0)
        higher = torch.where(expert >= 0, 2 * n - slot, out.gather(-1, at))
        out = out.scatter(-1, at, higher)
    return out


def weigh_edited(
    logits: Float[Tensor, "batch pos expert"],
    indices: Int[Tensor, "batch pos k"],
    count: Int[Tensor, "batch pos"],
    k: int,
    program: RouteProgram,
    weigh: Weigh = weigh,
) -> Float[Tensor, "batch pos k"]:
    """Softmax over each token's chosen experts, then the steps on the weights in order."""
    weights = _softmax(logits, indices, count, k, program, weigh)
    for _, tokens, _, _ in _steps(program, (REPLAY,)):
        if program.recorded is None or program.recorded_weights is None:
            continue
        given, own = program.recorded_weights, program.recorded == indices
        kept = (own | (program.recorded < 0)).all(-1) & (given >= 0).any(-1)
        weights = torch.where((tokens & kept)[..., None], given.clamp_min(0), weights)
    for op, tokens, table, _ in _steps(program, ON_WEIGHTS):
        left = weights.masked_fill(table[indices] > 0, 0)
        if op == AROUND:
            total = left.sum(-1, keepdim=True)
            left = torch.where(total > 0, left / total.where(total > 0, 1), left)
        weights = torch.where(tokens[..., None], left, weights)
    return weights


def _softmax(
    logits: Tensor, indices: Tensor, count: Tensor, k: int, program: RouteProgram, weigh: Weigh
) -> Tensor:
    """Weights that sum to 1 over the first `count` slots; as `weigh` gives them where that is k."""
    weights = weigh(logits, indices[..., :k])
    weights = torch.nn.functional.pad(weights, (0, program.width - weights.shape[-1]))
    if not list(_steps(program, (SET_K, REPLAY))):
        return weights
    beyond = torch.arange(program.width, device=logits.device) >= count[..., None]
    chosen = logits.gather(-1, indices).float().masked_fill(beyond, -torch.inf)
    return torch.where((count == k)[..., None], weights, torch.softmax(chosen, -1))


def _steps(program: RouteProgram, ops: tuple[int, ...]):
    """(op, tokens, table, k) of the steps with one of these codes, in order."""
    for i, op in enumerate(program.op.tolist()):
        if op in ops:
            yield op, program.tokens[i], program.table[i], int(program.k[i])


def _any(steps: list) -> Tensor:
    touched = steps[0][1]
    for _, tokens, _, _ in steps[1:]:
        touched = touched | tokens
    return touched
