"""gpt-oss-nano in plain torch, for training and for measuring (fp32, one CPU core).

The architecture is gpt-oss: RMSNorm, grouped-query attention with sinks, sliding and full layers in
turn, YaRN positions, a top-4 mixture of clamped-SwiGLU experts. Module and parameter names equal
the checkpoint's, except that an expert's gate and up rows are kept apart here (see `export`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from .mxfp4 import StraightThrough
from .ops import Experts, Normalize, SinkAttention

NEAR, SHARPNESS = (1, 1, 2, 3), 4.0
"""Where the first four heads of layer 0 look at the start: one, two, three tokens back."""


@dataclass(frozen=True)
class NanoConfig:
    """Sizes; the names are gpt-oss's own."""

    vocab_size: int = 848
    hidden_size: int = 128
    intermediate_size: int = 64
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    num_key_value_heads: int = 2
    head_dim: int = 32
    num_local_experts: int = 16
    num_experts_per_tok: int = 4
    sliding_window: int = 32
    rms_norm_eps: float = 1e-5
    swiglu_limit: float = 7.0
    rope_theta: float = 1000.0
    yarn_factor: float = 4.0
    initial_context_length: int = 128
    beta_fast: float = 32.0
    beta_slow: float = 1.0

    def window(self, layer: int, tokens: int) -> int:
        """How many tokens a query sees: even layers slide, odd ones see everything."""
        return self.sliding_window if layer % 2 == 0 else max(tokens, 1)


class Routing(NamedTuple):
    """One layer's router: logits [token, expert] and the chosen experts [token, k]."""

    logits: Tensor
    chosen: Tensor


def yarn_frequencies(c: NanoConfig) -> tuple[Tensor, float]:
    """Inverse wavelengths [head_dim / 2], and the factor on cos and sin (0.1 ln s + 1)."""
    half, base = c.head_dim // 2, c.rope_theta
    wave = base ** (torch.arange(0, c.head_dim, 2).float() / c.head_dim)

    def turns(r: float) -> float:  # the feature that makes r turns within the original context
        ratio = c.initial_context_length / (r * 2 * math.pi)
        return c.head_dim * math.log(ratio) / (2 * math.log(base))

    low, high = max(turns(c.beta_fast), 0), min(turns(c.beta_slow), c.head_dim - 1)
    ramp = ((torch.arange(half).float() - low) / (high - low)).clamp(0, 1)
    return ramp / (c.yarn_factor * wave) + (1 - ramp) / wave, 0.1 * math.log(c.yarn_factor) + 1


class RMSNorm(nn.Module):
    def __init__(self, c: NanoConfig):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(c.hidden_size)), c.rms_norm_eps

    def forward(self, x: Tensor) -> Tensor:
        return Normalize.apply(x, self.weight, self.eps)


class Attention(nn.Module):
    def __init__(self, c: NanoConfig, layer: int):
        super().__init__()
        queries, keys = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        self.q_proj = nn.Linear(c.hidden_size, queries)
        self.k_proj = nn.Linear(c.hidden_size, keys)
        self.v_proj = nn.Linear(c.hidden_size, keys)
        self.o_proj = nn.Linear(queries, c.hidden_size)
        self.sinks = nn.Parameter(torch.zeros(c.num_attention_heads))
        self.c, self.layer = c, layer

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q [batch, kv head, token, group, d], scaled; k, v [batch, kv head, token, d]; rotated."""
        b, t, kv, d = *x.shape[:2], self.c.num_key_value_heads, self.c.head_dim
        q = self.q_proj(x).view(b, t, kv, -1, d).transpose(1, 2)
        k = self.k_proj(x).view(b, t, kv, d).transpose(1, 2)
        v = self.v_proj(x).view(b, t, kv, d).transpose(1, 2)
        scale = d**-0.5
        return _rotate(q, cos[:, None] * scale, sin[:, None] * scale), _rotate(k, cos, sin), v

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, t, kv, d = *x.shape[:2], self.c.num_key_value_heads, self.c.head_dim
        q, k, v = self.project(x, cos, sin)
        group = q.shape[3]
        sink = self.sinks.view(1, kv, 1, group, 1).expand(b, kv, t, group, 1)
        q = torch.cat([q, sink], -1).view(b * kv, t * group, d + 1)
        k, v = k.reshape(b * kv, t, d), v.reshape(b * kv, t, d)
        out = SinkAttention.apply(q, k, v, group, self.c.window(self.layer, t))
        out = out.view(b, kv, t, group * d).transpose(1, 2).reshape(b, t, -1)
        return self.o_proj(out)

    def step(self, x: Tensor, cos: Tensor, sin: Tensor, past: "Cache", seen: Tensor) -> Tensor:
        """The same with cached keys; `seen` is additive [batch, 1, query, key] (the plain way)."""
        b, t, kv, d = *x.shape[:2], self.c.num_key_value_heads, self.c.head_dim
        q, k, v = self.project(x, cos, sin)
        k, v = past.extend(self.layer, k, v)
        group = q.shape[3]
        scores = q.flatten(2, 3) @ k.mT  # [batch, kv, query x group, key]
        scores = scores + seen.repeat_interleave(group, 2)
        sink = self.sinks.view(1, kv, 1, group).expand(b, kv, t, group).reshape(b, kv, -1, 1)
        p = torch.softmax(torch.cat([scores, sink], -1), -1)[..., :-1]
        out = (p @ v).view(b, kv, t, group * d).transpose(1, 2).reshape(b, t, -1)
        return self.o_proj(out)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class MoE(nn.Module):
    """Top-k experts, weighted by the softmax over the chosen logits only."""

    def __init__(self, c: NanoConfig):
        super().__init__()
        n, d, ff = c.num_local_experts, c.hidden_size, c.intermediate_size
        self.router = nn.Linear(d, n)
        self.gate_up_proj = nn.Parameter(torch.randn(n, 2, ff, d) * d**-0.5)
        self.gate_up_proj_bias = nn.Parameter(torch.zeros(n, 2, ff))
        self.down_proj = nn.Parameter(torch.randn(n, d, ff) * 0.5 * ff**-0.5)
        self.down_proj_bias = nn.Parameter(torch.zeros(n, d))
        self.c, self.quantized = c, False

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:
        k = self.c.num_experts_per_tok
        logits = self.router(x)
        top, chosen = logits.topk(k, -1)
        w1, w2 = self.gate_up_proj.flatten(1, 2), self.down_proj
        if self.quantized:
            w1, w2 = StraightThrough.apply(w1), StraightThrough.apply(w2)
        b1, b2 = self.gate_up_proj_bias.flatten(1, 2), self.down_proj_bias
        mixed = Experts.apply(x, top.softmax(-1), chosen, w1, b1, w2, b2, self.c.swiglu_limit)
        return mixed, Routing(logits, chosen)


class Layer(nn.Module):
    def __init__(self, c: NanoConfig, layer: int):
        super().__init__()
        self.input_layernorm, self.self_attn = RMSNorm(c), Attention(c, layer)
        self.post_attention_layernorm, self.mlp = RMSNorm(c), MoE(c)


class Cache:
    """Keys and values of every layer, for generation."""

    def __init__(self):
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}
        self.tokens = 0

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if layer in self.kept:
            k, v = (torch.cat(pair, 2) for pair in zip(self.kept[layer], (k, v), strict=True))
        self.kept[layer] = k, v
        return k, v


class Nano(nn.Module):
    def __init__(self, c: NanoConfig):
        super().__init__()
        self.c = c
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        nn.init.normal_(self.embed_tokens.weight, std=0.5)
        self.layers = nn.ModuleList(Layer(c, i) for i in range(c.num_hidden_layers))
        self.norm = RMSNorm(c)
        self.lm_head = nn.Linear(c.hidden_size, c.vocab_size, bias=False)
        self.frequencies, self.stretch = yarn_frequencies(c)
        self._look_back(NEAR)

    def forward(
        self,
        ids: Tensor,
        keep: Tensor | None = None,
        *,
        without: tuple[int, Tensor] | None = None,
    ) -> tuple[Tensor, list[Routing]]:
        """ids [batch, token], padded on the right -> logits, and each layer's routing.

        logits [batch, token, vocab], or [kept, vocab] where `keep` lists flat positions. `without`
        (layer, [batch, token]) leaves out what that layer's experts add to those tokens.
        """
        cos, sin = self._positions(0, ids.shape[1])
        x, routes = self.embed_tokens(ids), []
        for i, layer in enumerate(self.blocks):
            x = x + layer.self_attn(layer.input_layernorm(x), cos, sin)
            mixed, route = _experts(layer, x)
            if without is not None and without[0] == i:
                mixed = torch.where(without[1][..., None], x, mixed)
            x = mixed
            routes.append(route)
        if keep is not None:
            x = x.flatten(0, 1).index_select(0, keep)
        return self.lm_head(self.norm(x)), routes

    def step(self, ids: Tensor, pad: Tensor, past: Cache) -> tuple[Tensor, list[Routing]]:
        """The next tokens of a batch padded on the left; pad [batch] counts each row's padding.

        Returns logits of the last token [batch, vocab] and the routing of all new tokens.
        """
        start, total = past.tokens, past.tokens + ids.shape[1]
        past.tokens = total
        cos, sin = self._positions(start, total)
        query, key = torch.arange(start, total)[:, None], torch.arange(total)[None]
        real = (key >= pad[:, None, None]) & (key <= query)  # [batch, query, key]
        x, routes = self.embed_tokens(ids), []
        for i, layer in enumerate(self.blocks):
            seen = real & (query - key < self.c.window(i, total))
            mask = torch.zeros(seen.shape).masked_fill_(~seen, -1e9)[:, None]
            x = x + layer.self_attn.step(layer.input_layernorm(x), cos, sin, past, mask)
            x, route = _experts(layer, x)
            routes.append(route)
        return self.lm_head(self.norm(x[:, -1])), routes

    @torch.no_grad()
    def _look_back(self, offsets: tuple[int, ...]) -> None:
        """Start the first heads of layer 0 at fixed distances, through the q and k biases alone.

        With k = c·1 and q = c·e^{i f offset} on the fastest frequencies f, the score of a key
        `distance` tokens back is c² Σ_f cos(f (distance - offset)): highest at the offset.
        """
        attention, fast, half = self.blocks[0].self_attn, 5, self.c.head_dim // 2
        attention.k_proj.bias[: self.c.head_dim] = 0
        attention.k_proj.bias[:fast] = SHARPNESS
        for head, offset in enumerate(offsets):
            angle, at = self.frequencies[:fast] * offset, head * self.c.head_dim
            attention.q_proj.bias[at : at + fast] = SHARPNESS * angle.cos()
            attention.q_proj.bias[at + half : at + half + fast] = -SHARPNESS * angle.sin()

    @property
    def blocks(self) -> Sequence[Layer]:
        """The layers, typed."""
        return cast(Sequence[Layer], self.layers)

    def quantize(self, on: bool = True) -> None:
        """Round the experts to MXFP4 in every forward pass (straight-through gradients)."""
        for layer in self.blocks:
            layer.mlp.quantized = on

    def _positions(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        angle = torch.arange(start, stop).float()[:, None] * self.frequencies
        return angle.cos() * self.stretch, angle.sin() * self.stretch


def _experts(layer: Layer, x: Tensor) -> tuple[Tensor, Routing]:
    flat = layer.post_attention_layernorm(x).flatten(0, 1)
    mixed, route = layer.mlp(flat)
    return x + mixed.view_as(x), route
