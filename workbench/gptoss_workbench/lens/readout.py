"""From residuals to what they say about the next token.

    l = W_U norm(x)                  the lens: final norm and unembedding of any residual x
    log p = l - logsumexp(l)         in nats

The kernel `gptoss_kernels.lens` walks the vocabulary in tiles and never stores a row of logits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor


class Readout(NamedTuple):
    """What each residual predicts; the leading axes are the residuals'."""

    tokens: Int[Tensor, "layer row k"]
    """the most likely tokens, best first"""
    log_probs: Float[Tensor, "layer row k"]
    """theirs, in nats"""
    log_sum_exp: Float[Tensor, "layer row"]
    """of the logits: log p = logit - log_sum_exp"""
    entropy: Float[Tensor, "layer row"]
    """nats"""
    target_log_prob: Float[Tensor, "layer row"]
    """nats; NaN without a target"""
    rank: Int[Tensor, "layer row"]
    """tokens with a larger logit than the target's (0: it is the top one); -1 without a target"""
    kl: Float[Tensor, "layer row"]
    """KL(final || this) in nats; NaN where no final residual was given"""


def readout(
    model: Any,
    states: Float[Tensor, "layer row d_model"],
    *,
    k: int = 5,
    targets: Int[Tensor, " row"] | None = None,
    final: Float[Tensor, "row d_model"] | None = None,
) -> Readout:
    """Read residuals, on whatever device, out through the model's final norm and unembedding.

    Args:
        k: most likely tokens to keep.
        targets: a token a row whose rank and probability are wanted; -1 is none.
        final: residuals, a row each, that every layer's distribution is compared with.
    """
    unembed, device = model.unembed, model.unembed.weight.device
    states, targets = states.to(device), None if targets is None else targets.to(device)
    ends = None if final is None else final_norm(model, final[None].to(device))[0]
    seen = unembed.ops.lens(
        final_norm(model, states), unembed.weight, k=k, targets=targets, final=ends
    )
    return Readout(
        seen.tokens,
        seen.logits - seen.log_sum_exp[..., None],
        seen.log_sum_exp,
        seen.entropy,
        seen.target_logit - seen.log_sum_exp,
        seen.rank,
        seen.kl,
    )


def final_norm(model: Any, x: Float[Tensor, "layer row d_model"]) -> Tensor:
    """The model's last norm of any residuals, without its hook points."""
    norm = model.ln_final
    return norm.ops.rms_norm(x, norm.weight, norm.eps)
