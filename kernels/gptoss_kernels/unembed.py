"""From the final residual to logits: logits = W_U x, no bias, no cap, no tying.

Only the rows asked for are computed; the vocabulary is walked in tiles (see `linear`).
"""

from jaxtyping import Float
from torch import Tensor

from gptoss_kernels.linear import linear


def unembed(
    x: Float[Tensor, "batch pos d_model"], weight: Float[Tensor, "vocab d_model"]
) -> Float[Tensor, "batch pos vocab"]:
    """Logits in the dtype of `x`, summed in float32 and rounded once."""
    return linear(x, weight)
