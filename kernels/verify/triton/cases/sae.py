"""Sparse codes of gpt-oss-20b's residuals in 131,072 latents."""

from typing import Any

import torch
from case import Case

from gptoss_kernels.triton.sae import decode, decoder_gradient, encode_above, encode_topk

D_MODEL, LATENTS, ROWS = 2880, 131072, 64
TURN: dict[str, Any] = {"flop": 2 * 32 * 128 * 64, "nbytes": 128 * 64 * 2}
"""A turn of the product's loop: 64 inputs of 128 latents for 32 rows."""
HALF = {"flop": TURN["flop"] // 2}


def encoder(dtype=torch.bfloat16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    weight = torch.empty(LATENTS, D_MODEL, dtype=torch.bfloat16)
    return torch.empty(ROWS, D_MODEL, dtype=dtype), weight, torch.empty(LATENTS)


def decoded() -> None:
    indices, values = torch.zeros(4, 64, dtype=torch.int64), torch.zeros(4, 64)
    weight = torch.empty(LATENTS, D_MODEL, dtype=torch.bfloat16)
    out = decode(indices, values.requires_grad_(), weight, torch.empty(D_MODEL))
    out.backward(torch.zeros_like(out))
    decoder_gradient(indices, values.detach(), torch.zeros(4, D_MODEL))


CASES = (
    Case("sae, the 64 largest", "topk_kernel", lambda: encode_topk(*encoder(), 64),
         arch={"sm_100": HALF}, **TURN),
    Case("sae, the 128 largest", "topk_kernel", lambda: encode_topk(*encoder(), 128),
         flop=HALF["flop"], nbytes=TURN["nbytes"]),
    Case("sae, the 64 largest in float32", "topk_kernel",
         lambda: encode_topk(*encoder(torch.float32), 64), flop=3 * TURN["flop"],
         nbytes=TURN["nbytes"], arch={"sm_100": {"flop": 3 * HALF["flop"]}}),
    Case("sae, above a threshold", "above_kernel",
         lambda: encode_above(*encoder(), 1.0, slots=128), arch={"sm_100": HALF}, **TURN),
    Case("sae, above a threshold in float32", "above_kernel",
         lambda: encode_above(*encoder(torch.float32), 1.0, slots=128), flop=3 * TURN["flop"],
         nbytes=TURN["nbytes"], arch={"sm_100": {"flop": 3 * HALF["flop"]}}),
    Case("sae, decode", "decode_kernel", decoded, nbytes=1024 * 2),
    Case("sae, gradient to values", "values_gradient_kernel", decoded, nbytes=1024 * 6),
    Case("sae, gradient to the decoder", "decoder_gradient_kernel", decoded, nbytes=1024 * 4),
)  # fmt: skip
