"""Finding a hook point by name: other spellings of TransformerLens, and help with wrong ones."""

import re
from collections.abc import Iterable
from difflib import get_close_matches

ALIASES = (
    (r"embed\.hook_out", r"hook_embed"),
    (r"blocks\.(\d+)\.hook_in", r"blocks.\1.hook_resid_pre"),
    (r"blocks\.(\d+)\.hook_out", r"blocks.\1.hook_resid_post"),
    (r"blocks\.(\d+)\.ln1\.hook_in", r"blocks.\1.hook_attn_in"),
    (r"blocks\.(\d+)\.ln2\.hook_in", r"blocks.\1.hook_mlp_in"),
    (r"blocks\.(\d+)\.attn\.hook_in", r"blocks.\1.ln1.hook_out"),
    (r"blocks\.(\d+)\.attn\.hook_out", r"blocks.\1.hook_attn_out"),
    (r"blocks\.(\d+)\.attn\.([qkv])\.hook_out", r"blocks.\1.attn.hook_\2"),
    (r"blocks\.(\d+)\.attn\.o\.hook_in", r"blocks.\1.attn.hook_z"),
    (r"blocks\.(\d+)\.attn\.o\.hook_out", r"blocks.\1.hook_attn_out"),
    (r"blocks\.(\d+)\.mlp\.hook_in", r"blocks.\1.ln2.hook_out"),
    (r"blocks\.(\d+)\.mlp\.hook_out", r"blocks.\1.hook_mlp_out"),
    (r"blocks\.(\d+)\.mlp\.router\.hook_in", r"blocks.\1.ln2.hook_out"),
    (r"blocks\.(\d+)\.mlp\.router\.hook_out", r"blocks.\1.mlp.hook_router_logits"),
    (r"blocks\.(\d+)\.mlp\.(?:router\.)?hook_router_scores", r"blocks.\1.mlp.hook_expert_weights"),
    (r"blocks\.(\d+)\.mlp\.router\.(hook_expert_\w+)", r"blocks.\1.mlp.\2"),
    (r"unembed\.hook_in", r"ln_final.hook_out"),
    (r"ln_final\.hook_in", r"blocks.{last}.hook_resid_post"),
)
"""(pattern, canonical name); the canonical point is the same tensor."""

NEURONS = "hook_expert_gate, hook_expert_up (before the clamp) or hook_expert_post (after SwiGLU)"

ABSENT = (
    (r".*mlp\.hook_(pre|post)", f"an expert layer has no dense neurons; use mlp.{NEURONS}"),
    (
        r".*mlp\.experts\.\d+\.hook_\w+",
        f"experts are read per chosen slot, [batch, pos, k, d_ff]; use mlp.{NEURONS} and find the "
        "expert in mlp.hook_expert_indices",
    ),
    (r"hook_pos_embed", "positions are rotary; see attn.hook_rot_q and attn.hook_rot_k"),
)
"""Names other libraries have, and what to use here."""


class UnknownHook(KeyError):
    """No hook point has this name; the message lists what comes close."""

    def __str__(self) -> str:
        return str(self.args[0])


def canonical(name: str, known: Iterable[str], n_layers: int) -> str:
    """The hook point `name` means, by its own name or an alias."""
    known = list(known)
    if name in known:
        return name
    for pattern, target in ALIASES:
        if match := re.fullmatch(pattern, name):
            found = match.expand(target.replace("{last}", str(n_layers - 1)))
            if found in known:
                return found
    for pattern, advice in ABSENT:
        if re.fullmatch(pattern, name):
            raise UnknownHook(f"no hook point {name!r}: {advice}")
    near = get_close_matches(name, known, n=4, cutoff=0.6)
    hint = f" Near: {', '.join(near)}." if near else ""
    raise UnknownHook(f"no hook point {name!r}.{hint} model.hook_points() lists them all.")
