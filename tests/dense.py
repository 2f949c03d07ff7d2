"""gpt-oss written again in plain torch, dense and float32, to compare with.

Nothing is shared with the packages: experts are decoded to full matrices and all of them run, the
sink is a column of the softmax, rows are never sorted. Every place of the forward pass calls
`at(name, tensor)`, which keeps the tensor and applies the edit of that name.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
Edits = Mapping[str, Callable[[Tensor], Tensor]]


def decoded(blocks: Tensor, scales: Tensor) -> Tensor:
    """MXFP4 to float32."""
    codes = torch.stack([blocks % 16, blocks // 16], -1).flatten(-2).long()
    return (E2M1[codes] * torch.exp2(scales.float() - 127)[..., None]).flatten(-2)


class Dense:
    """`Dense(config, tensors)(tokens)` gives logits; `kept` holds the last run by hook name."""

    def __init__(self, config, tensors: Mapping[str, Tensor]):
        self.config, self.kept = config, {}
        self.w = {name: t.float() for name, t in tensors.items() if t.dtype != torch.uint8}
        for name in [name for name in tensors if name.endswith("_blocks")]:
            stem = name.removesuffix("_blocks")
            self.w[stem] = decoded(tensors[name], tensors[f"{stem}_scales"])

    def __call__(self, tokens: Tensor, edits: Edits | None = None) -> Tensor:
        self.kept, self.edits = {}, dict(edits or {})
        x = self.at("hook_embed", self.w["model.embed_tokens.weight"][tokens])
        for layer in range(self.config.num_hidden_layers):
            x = self.block(layer, x)
        x = self.norm("ln_final", "model.norm", x)
        return self.at("unembed.hook_out", x @ self.w["lm_head.weight"].T)

    def at(self, name: str, x: Tensor) -> Tensor:
        x = self.edits.pop(name)(x) if name in self.edits else x
        self.kept[name] = x
        return x

    def norm(self, name: str, stored: str, x: Tensor) -> Tensor:
        scale = (x.pow(2).mean(-1, keepdim=True) + self.config.rms_norm_eps).sqrt()
        normalized = self.at(f"{name}.hook_normalized", x / self.at(f"{name}.hook_scale", scale))
        return self.at(f"{name}.hook_out", normalized * self.w[f"{stored}.weight"])

    def block(self, layer: int, x: Tensor) -> Tensor:
        ours, stored = f"blocks.{layer}", f"model.layers.{layer}"
        x = self.at(f"{ours}.hook_resid_pre", x)
        source = self.at(f"{ours}.hook_attn_in", x)
        normed = self.norm(f"{ours}.ln1", f"{stored}.input_layernorm", source)
        attended = self.attention(layer, normed, source)
        x = self.at(f"{ours}.hook_resid_mid", x + self.at(f"{ours}.hook_attn_out", attended))
        source = self.at(f"{ours}.hook_mlp_in", x)
        normed = self.norm(f"{ours}.ln2", f"{stored}.post_attention_layernorm", source)
        mixed = self.at(f"{ours}.hook_mlp_out", self.experts(layer, normed))
        return self.at(f"{ours}.hook_resid_post", x + mixed)

    def attention(self, layer: int, normed: Tensor, source: Tensor) -> Tensor:
        c, ours, stored = self.config, f"blocks.{layer}.attn", f"model.layers.{layer}.self_attn"
        q = self.project(layer, "q", normed, source, c.num_attention_heads)
        k = self.project(layer, "k", normed, source, c.num_key_value_heads)
        v = self.project(layer, "v", normed, source, c.num_key_value_heads)
        q = self.at(f"{ours}.hook_rot_q", self.rotate(q))
        k = self.at(f"{ours}.hook_rot_k", self.rotate(k))
        group = c.num_attention_heads // c.num_key_value_heads
        k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
        scores = torch.einsum("bqnh,bknh->bnqk", q, k) / math.sqrt(c.head_dim)
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        if c.layer_types[layer] == "sliding_attention":
            seen = seen.triu(1 - c.sliding_window)
        scores = scores.where(seen, torch.finfo(torch.float32).min)
        scores = self.at(f"{ours}.hook_attn_scores", scores)
        sink = self.w[f"{stored}.sinks"][None, :, None, None].expand(*scores.shape[:3], 1)
        soft = torch.cat([scores, sink], -1).softmax(-1)
        self.at(f"{ours}.hook_sink", soft[..., -1])
        pattern = self.at(f"{ours}.hook_pattern", soft[..., :-1])
        z = self.at(f"{ours}.hook_z", torch.einsum("bnqk,bknh->bqnh", pattern, v))
        w = self.w[f"{stored}.o_proj.weight"].T.unflatten(0, (c.num_attention_heads, -1))
        result = self.at(f"{ours}.hook_result", torch.einsum("bpnh,nhd->bpnd", z, w))
        return result.sum(2) + self.w[f"{stored}.o_proj.bias"]

    def project(self, layer: int, part: str, normed: Tensor, source: Tensor, heads: int) -> Tensor:
        ours, stored = f"blocks.{layer}.attn", f"model.layers.{layer}"
        weight = self.w[f"{stored}.self_attn.{part}_proj.weight"].unflatten(0, (heads, -1))
        inputs = normed[:, :, None].expand(-1, -1, heads, -1)
        if f"{ours}.hook_{part}_input" in self.edits:
            copies = source[:, :, None].expand(-1, -1, heads, -1)
            copies = self.at(f"{ours}.hook_{part}_input", copies)
            scale = (copies.pow(2).mean(-1, keepdim=True) + self.config.rms_norm_eps).sqrt()
            inputs = copies / scale * self.w[f"{stored}.input_layernorm.weight"]
        bias = self.w[f"{stored}.self_attn.{part}_proj.bias"].unflatten(0, (heads, -1))
        y = torch.einsum("bpnd,nhd->bpnh", inputs, weight) + bias
        return self.at(f"{ours}.hook_{part}", y)

    def rotate(self, x: Tensor) -> Tensor:
        c, half = self.config, self.config.head_dim // 2
        scaling, i = c.rope_scaling, torch.arange(half, dtype=torch.float64)
        plain = c.rope_theta ** (-i / half)

        def turn(rotations):
            context = scaling.original_max_position_embeddings
            return half * math.log(context / (rotations * 2 * math.pi)) / math.log(c.rope_theta)

        low, high = max(turn(scaling.beta_fast), 0), min(turn(scaling.beta_slow), c.head_dim - 1)
        slow = ((i - low) / (high - low)).clamp(0, 1)
        angle = torch.arange(x.shape[1])[:, None] * (plain * (1 - slow + slow / scaling.factor))
        size = 0.1 * math.log(scaling.factor) + 1
        cos, sin = ((f(angle) * size).float()[None, :, None] for f in (torch.cos, torch.sin))
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def experts(self, layer: int, x: Tensor) -> Tensor:
        c, ours, stored = self.config, f"blocks.{layer}.mlp", f"model.layers.{layer}.mlp"
        w = {name: self.w[f"{stored}.experts.{name}"] for name in
             ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")}  # fmt: skip
        router = self.w[f"{stored}.router.weight"]
        logits = x @ router.T + self.w[f"{stored}.router.bias"]
        logits = self.at(f"{ours}.hook_router_logits", logits)
        chosen = logits.topk(c.num_experts_per_tok).indices
        chosen = self.at(f"{ours}.hook_expert_indices", chosen)
        weights = self.at(f"{ours}.hook_expert_weights", logits.gather(-1, chosen).softmax(-1))
        u = torch.einsum("bpd,efd->bpef", x, w["gate_up_proj"]) + w["gate_up_proj_bias"]
        u = self.slots(u, chosen)
        gate = self.at(f"{ours}.hook_expert_gate", u[..., 0::2])
        up = self.at(f"{ours}.hook_expert_up", u[..., 1::2])
        gate, up = gate.clamp(max=c.swiglu_limit), up.clamp(-c.swiglu_limit, c.swiglu_limit)
        post = self.at(f"{ours}.hook_expert_post", gate * torch.sigmoid(1.702 * gate) * (up + 1))
        out = torch.einsum("bpkf,bpkdf->bpkd", post, w["down_proj"][chosen])
        out = self.at(f"{ours}.hook_expert_out", out + w["down_proj_bias"][chosen])
        return (weights[..., None] * out).sum(2)

    def slots(self, all_experts: Tensor, chosen: Tensor) -> Tensor:
        """[b, p, expert, f] to the chosen [b, p, k, f]."""
        index = chosen[..., None].expand(*chosen.shape, all_experts.shape[-1])
        return all_experts.gather(2, index)
