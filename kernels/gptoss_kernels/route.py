"""Which experts a token goes to, and with what weight.

    indices = the k largest router logits, best first (ties: the lower expert number)
    weights = softmax over those k logits only

The router's bias takes part in both. Equal to renormalising a softmax over all experts.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Route(NamedTuple):
    """One layer's choice, best expert first."""

    indices: Int[Tensor, "batch pos k"]
    weights: Float[Tensor, "batch pos k"]
    """float32; each row sums to 1"""


def choose(logits: Float[Tensor, "batch pos expert"], k: int) -> Int[Tensor, "batch pos k"]:
    """The `k` best experts of each token in rank order."""
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"route: k = {k}, but there are {logits.shape[-1]} experts")
    return torch.sort(logits.detach(), dim=-1, descending=True, stable=True).indices[..., :k]


def weigh(
    logits: Float[Tensor, "batch pos expert"], indices: Int[Tensor, "batch pos k"]
) -> Float[Tensor, "batch pos k"]:
    """Softmax of the logits over the chosen experts, in float32."""
    return torch.softmax(logits.gather(-1, indices).float(), -1)


def route(logits: Float[Tensor, "batch pos expert"], k: int) -> Route:
    """Choose and weigh in one step."""
    indices = choose(logits, k)
    return Route(indices, weigh(logits, indices))
