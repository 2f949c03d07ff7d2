"""`unembed` in Triton; formula and signature are those of `gptoss_kernels.unembed`."""

from jaxtyping import Float
from torch import Tensor

from gptoss_kernels.triton.linear import linear


def unembed(
    x: Float[Tensor, "batch pos d_model"], weight: Float[Tensor, "vocab d_model"]
) -> Float[Tensor, "batch pos vocab"]:
    """Logits in the dtype of `x`, summed in float32 and rounded once."""
    return linear(x, weight)
