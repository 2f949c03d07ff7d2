"""The axis glossary: the one place where axis names come from.

Shapes are written with these names everywhere, `[batch, pos, head, d_head]`; a hook point's `axes`
are a tuple of them.
"""

from __future__ import annotations

import re

GLOSSARY: dict[str, str] = {
    "batch": "rows of the batch; always dimension 0, never flattened into tokens",
    "pos": "places in the prompt, pad places included",
    "query": "the places that attend",
    "key": "the places that are attended to",
    "head": "query heads",
    "kv_head": "key and value heads, each shared by head / kv_head query heads",
    "d_head": "the width of one head",
    "d_model": "the width of the residual stream",
    "expert": "the experts of one layer",
    "k": "the chosen experts of a token in rank order, best first",
    "d_ff": "the neurons of one expert",
    "layer": "the blocks, from the embedding upwards",
    "vocab": "tokens of the vocabulary",
    "part": "what the residual stream is the sum of, stacked first",
    "pair": "tokens that two traces share",
    "sentence": "sentences of one prompt, in order",
    "latent": "the features of a sparse autoencoder",
    "step": "the routing edits of one layer, in the order they act",
    "one": "an axis of length one, kept so that the tensor broadcasts",
}

_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")


def layer_of(name: str) -> int | None:
    """Give the block a hook point lies in, or None for those outside the blocks.

    axes.layer_of("blocks.3.attn.hook_z")  # 3
    """
    found = _BLOCK.search(name)
    return int(found[1]) if found else None
