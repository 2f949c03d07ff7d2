"""Routing of gpt-oss-20b (32 experts) and 120b (128): choice, weights, edits, the whole router."""

import torch
from case import Case

from gptoss_kernels.route_edited import RouteProgram
from gptoss_kernels.triton.route import choose, router, weigh
from gptoss_kernels.triton.route_edited import route_edited

TOKENS, K, WIDTH, D_MODEL = 5, 4, 8, 2880


def logits(experts: int) -> torch.Tensor:
    return torch.empty(1, TOKENS, experts)


def weighed() -> None:
    indices = torch.zeros(1, TOKENS, K, dtype=torch.int64)
    weights = weigh(logits(128).requires_grad_(), indices)
    weights.backward(torch.empty_like(weights))


def edited(experts: int) -> None:
    step = torch.zeros(2, dtype=torch.int32)
    program = RouteProgram(
        step, torch.ones(2, 1, TOKENS, dtype=torch.bool), torch.zeros(2, experts), step, WIDTH,
        torch.zeros(1, TOKENS, WIDTH, dtype=torch.int64), torch.zeros(1, TOKENS, WIDTH),
    )  # fmt: skip
    route_edited(logits(experts), K, program)


def routed(experts: int, dtype=torch.bfloat16) -> None:
    weight = torch.empty(experts, D_MODEL, dtype=torch.bfloat16)
    x = torch.empty(1, 1, D_MODEL, dtype=dtype)
    router(x, weight, torch.empty(experts), K, dtype=torch.float32)


CASES = (
    Case("route, the choice among 32", "_choose_kernel", lambda: choose(logits(32), K)),
    Case("route, the choice among 128", "_choose_kernel", lambda: choose(logits(128), K)),
    Case("route, weights", "_weigh_kernel", weighed),
    Case("route, gradient of weights", "_gradient_kernel", weighed),
    Case("route, edits of 32", "_kernel", lambda: edited(32)),
    Case("route, edits of 128", "_kernel", lambda: edited(128)),
    Case("route, the router of 32", "_route_kernel", lambda: routed(32)),
    Case("route, the router of 128 in float32", "_route_kernel",
         lambda: routed(128, torch.float32)),
)  # fmt: skip
