"""Attention of gpt-oss-20b: prefill, one token over a long cache, a pattern, and gradients."""

import torch
from case import ATTENDING, Case

from gptoss_kernels.attention import AttentionTap
from gptoss_kernels.triton.attention import attention

HEADS, KV_HEADS, D_HEAD = 64, 8, 64
ROWS, FEW, KEYS = 128, 16, 64
"""Tiles: rows of a prompt's tile, of one token's, and keys a turn of the loop."""
PAIR = 2 * KEYS * D_HEAD * 2
"""Bytes of a tile of keys and one of values in bfloat16."""


def ask(queries: int, keys: int, window: int | None = None, dtype=torch.bfloat16, **given):
    q = torch.empty(1, queries, HEADS, D_HEAD, dtype=dtype)
    k, v = torch.empty(2, 1, keys, KV_HEADS, D_HEAD, dtype=dtype)
    if given.pop("backward", False):
        q, k, v = (x.requires_grad_() for x in (q, k, v))
    query_at, key_at = torch.arange(keys - queries, keys)[None], torch.arange(keys)[None]
    z = attention(q, k, v, torch.empty(HEADS), query_at, key_at, window=window, **given)
    if z.requires_grad:
        z.backward(torch.empty_like(z))


def look(x: torch.Tensor) -> torch.Tensor:
    return x


def flop(rows: int, keys: int = KEYS, products: int = 2) -> int:
    return products * 2 * rows * keys * D_HEAD


def scores(rows: int, few: int, **more) -> dict:
    """What a turn does with tiles of `rows`, of which `few` hold a query."""
    return {"flop": flop(few), "scores": rows * KEYS, "nbytes": PAIR} | more


def turn(rows: int) -> dict:
    """What the gradient to keys does with a tile of queries."""
    return {"flop": flop(rows, products=4), "scores": rows * KEYS, "nbytes": 2 * rows * D_HEAD * 2}


WIDE = {
    "sm_90": scores(64, 8),
    "sm_100": scores(ROWS, 8),
    "gfx942": scores(32, 8),
}

CASES = (
    Case("attention, a prompt of 512", "attend_kernel", lambda: ask(512, 512), nbytes=PAIR,
         flop=flop(ROWS), scores=ROWS * KEYS, most=ATTENDING),
    Case("attention, a prompt of 512 in a window", "attend_kernel", lambda: ask(512, 512, 128),
         nbytes=PAIR, flop=flop(ROWS), scores=ROWS * KEYS, most=ATTENDING),
    Case("attention, a token over 4096 keys", "attend_kernel", lambda: ask(1, 4096), arch=WIDE,
         most=ATTENDING, **scores(FEW, 8)),
    Case("attention, a token over 4096 keys: the merge", "merge_kernel", lambda: ask(1, 4096),
         nbytes=(D_HEAD + 2) * 4),
    Case("attention, a token in a window", "attend_kernel", lambda: ask(1, 639, 128),
         arch=WIDE, most=ATTENDING, **scores(FEW, 8)),
    Case("attention in float32", "attend_kernel", lambda: ask(128, 128, dtype=torch.float32),
         flop=flop(64, 16), scores=64 * 16, nbytes=2 * 16 * D_HEAD * 4),
    Case("attention, places of keys", "_places_kernel", lambda: ask(1, 4096)),
    Case("attention, a pattern that is looked at", "_cube_kernel",
         lambda: ask(512, 512, tap=AttentionTap(pattern=look))),
    Case("attention, gradient to queries", "_query_kernel", lambda: ask(512, 512, backward=True),
         flop=flop(64, products=3), scores=64 * KEYS, nbytes=PAIR),
    Case("attention, gradient to keys and values", "_key_kernel",
         lambda: ask(512, 512, backward=True), arch=dict.fromkeys(("sm_90", "sm_100"), turn(64)),
         **turn(32)),
)  # fmt: skip
