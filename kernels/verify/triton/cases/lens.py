"""The lens on gpt-oss-20b: all layers of some rows, bare, and with target and final residual."""

from typing import Any

import torch
from case import Case

from gptoss_kernels.triton.lens import lens

D_MODEL, VOCAB, LAYERS, ROWS = 2880, 201088, 24, 8
TURN: dict[str, Any] = {"flop": 2 * 64 * 128 * 64, "nbytes": 128 * 64 * 2}
"""A turn of the product's loop: 64 inputs of 128 tokens for 64 residuals."""
HALF = {"sm_100": {"flop": TURN["flop"] // 2}}
OWN: dict[str, Any] = {"flop": 2 * 64 * 64 * 64, "nbytes": 64 * 64 * 2}
"""Of targets as many as residuals: the compiler drops the other half of the tile's products."""


def ask(k: int = 5, dtype=torch.bfloat16, whole: bool = True) -> None:
    weight = torch.empty(VOCAB, D_MODEL, dtype=torch.bfloat16)
    targets = torch.zeros(ROWS, dtype=torch.int64) if whole else None
    final = torch.empty(ROWS, D_MODEL, dtype=dtype) if whole else None
    lens(torch.empty(LAYERS, ROWS, D_MODEL, dtype=dtype), weight, k=k, targets=targets, final=final)


CASES = (
    Case("lens, bare", "lens_kernel", lambda: ask(whole=False), arch=HALF, **TURN),
    Case("lens, target and final residual", "lens_kernel", ask, arch=HALF, **TURN),
    Case("lens, 20 tokens kept", "lens_kernel", lambda: ask(20), arch=HALF, **TURN),
    Case("lens, in float32", "lens_kernel", lambda: ask(dtype=torch.float32),
         flop=3 * TURN["flop"], nbytes=TURN["nbytes"],
         arch={"sm_100": {"flop": 3 * TURN["flop"] // 2}}),
    Case("lens, logits of targets", "target_kernel", ask,
         arch={"sm_100": {"flop": OWN["flop"] // 4}}, **OWN),
    Case("lens, the merge", "merge_kernel", ask),
    Case("lens, the merge of 20 tokens", "merge_kernel", lambda: ask(20)),
)  # fmt: skip
