"""A block of gpt-oss and its attention; every hook point is visible in the line where it fires."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gptoss_hooks.points import HookPoint
from gptoss_kernels.attention import AttentionTap
from gptoss_kernels.backend import Backend
from gptoss_kernels.route_edited import RouteProgram
from gptoss_workbench.config import Config
from gptoss_workbench.expert_layer import ExpertLayer
from gptoss_workbench.kv_cache import KVCache
from gptoss_workbench.parts import Norm, Projection, frozen, looks, moved

Turn = tuple[Tensor, Tensor]
"""cos and sin of every position, [batch, pos, d_head / 2]"""


class Attention(nn.Module):
    """Grouped-query attention with sinks; every second layer sees only a sliding window.

    W_Q ... b_O are views of the stored weights per head, in the activations' dtype.
    """

    def __init__(
        self,
        config: Config,
        layer: int,
        tensors: Mapping[str, Tensor],
        ops: Backend,
        dtype: torch.dtype,
    ):
        super().__init__()
        self.layer, self.ops, self.dtype = layer, ops, dtype
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        sliding = config.layer_types[layer] == "sliding_attention"
        self.window = config.sliding_window if sliding else None
        name = f"model.layers.{layer}.self_attn"
        self.hook_q_input = HookPoint("batch", "pos", "head", "d_model", on_request=True)
        self.q_proj = Projection(tensors, f"{name}.q_proj")
        self.hook_q = HookPoint("batch", "pos", "head", "d_head")
        self.hook_k_input = HookPoint("batch", "pos", "kv_head", "d_model", on_request=True)
        self.k_proj = Projection(tensors, f"{name}.k_proj")
        self.hook_k = HookPoint("batch", "pos", "kv_head", "d_head")
        self.hook_v_input = HookPoint("batch", "pos", "kv_head", "d_model", on_request=True)
        self.v_proj = Projection(tensors, f"{name}.v_proj")
        self.hook_v = HookPoint("batch", "pos", "kv_head", "d_head")
        self.hook_rot_q = HookPoint("batch", "pos", "head", "d_head")
        self.hook_rot_k = HookPoint("batch", "pos", "kv_head", "d_head")
        self.sinks = frozen(tensors[f"{name}.sinks"])
        square = ("batch", "head", "query", "key")
        self.hook_attn_scores = HookPoint(*square, dtype=torch.float32)
        self.hook_sink = HookPoint(*square[:3], dtype=torch.float32, instead="attn.hook_pattern")
        gain = "gain" if ops.attention_edits else ""
        self.hook_pattern = HookPoint(*square, dtype=torch.float32, takes=gain)
        self.hook_z = HookPoint("batch", "pos", "head", "d_head", takes=gain)
        self.o_proj = Projection(tensors, f"{name}.o_proj")
        self.hook_result = HookPoint(
            "batch", "pos", "head", "d_model", dtype=torch.float32, on_request=True
        )

    def forward(
        self,
        normed: Float[Tensor, "batch pos d_model"],
        residual: Float[Tensor, "batch pos d_model"],
        norm: Norm,
        turn: Turn,
        positions: Int[Tensor, "batch pos"],
        cache: KVCache | None,
    ) -> Float[Tensor, "batch pos d_model"]:
        project = self._project
        q = self.hook_q(project(normed, residual, norm, self.q_proj, self.hook_q_input, self.heads))
        k = self.hook_k(
            project(normed, residual, norm, self.k_proj, self.hook_k_input, self.kv_heads)
        )
        v = self.hook_v(
            project(normed, residual, norm, self.v_proj, self.hook_v_input, self.kv_heads)
        )
        q = self.hook_rot_q(self.ops.rotate(q, *turn))
        k = self.hook_rot_k(self.ops.rotate(k, *turn))
        keys = positions
        if cache is not None:
            k, v, keys = cache.layers[self.layer].extend(k, v, positions)
        scores, sink, pattern = looks(self.hook_attn_scores, self.hook_sink, self.hook_pattern)
        given = {"window": self.window, "tap": AttentionTap(scores, pattern, sink)}
        if self.hook_z.in_kernel or self.hook_pattern.in_kernel:
            given["edits"] = self._in_kernel()
        z = self.ops.attention(q, k, v, self.sinks, positions, keys, **given)
        return self._merge(self.hook_z(z))

    def _in_kernel(self) -> Any:
        """Edits of z, and of patterns, that the kernel obeys."""
        given = [p.in_kernel() for p in (self.hook_pattern, self.hook_z) if p.in_kernel]
        first, *more = (each["gain"] for each in given)
        assert self.ops.attention_edits is not None
        return self.ops.attention_edits(gain=first * more[0] if more else first)

    def _project(
        self,
        normed: Tensor,
        residual: Tensor,
        norm: Norm,
        proj: Projection,
        point: HookPoint,
        heads: int,
    ) -> Float[Tensor, "batch pos head d_head"]:
        """Queries, keys or values; one residual copy a head when the split input is observed."""
        y = self.ops.linear(normed, proj.weight, proj.bias).unflatten(-1, (heads, -1))
        if not point.observed:
            return y
        copies = residual[:, :, None].repeat(1, 1, heads, 1)  # [batch, pos, head, d_model]
        if not point.edited_or_differentiated:
            point(copies)
            return y

        def split(inputs: Tensor) -> Tensor:
            each = self.ops.rms_norm(inputs.flatten(1, 2), norm.weight, norm.eps)
            weight = proj.weight.float().unflatten(0, (heads, -1))  # [head, d_head, d_model]
            return torch.einsum("bpnd,nhd->bpnh", each.unflatten(1, (-1, heads)).float(), weight)

        return moved(y, split(copies), split(point(copies.clone())))

    def _merge(self, z: Float[Tensor, "batch pos head d_head"]) -> Tensor:
        """Project all heads back to the residual, head by head when `hook_result` is observed."""
        y = self.ops.linear(z.flatten(2), self.o_proj.weight, self.o_proj.bias)
        if not self.hook_result.observed:
            return y
        result = torch.einsum("bpnh,nhd->bpnd", z.float(), self.W_O.float())
        if not self.hook_result.edited_or_differentiated:
            self.hook_result(result)
            return y
        return moved(y, result.sum(2), self.hook_result(result.clone()).sum(2))

    @property
    def W_Q(self) -> Float[Tensor, "head d_model d_head"]:
        return self.q_proj.weight.unflatten(0, (self.heads, -1)).mT.to(self.dtype)

    @property
    def W_K(self) -> Float[Tensor, "kv_head d_model d_head"]:
        return self.k_proj.weight.unflatten(0, (self.kv_heads, -1)).mT.to(self.dtype)

    @property
    def W_V(self) -> Float[Tensor, "kv_head d_model d_head"]:
        return self.v_proj.weight.unflatten(0, (self.kv_heads, -1)).mT.to(self.dtype)

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:
        return self.o_proj.weight.mT.unflatten(0, (self.heads, -1)).to(self.dtype)

    @property
    def b_Q(self) -> Float[Tensor, "head d_head"]:
        return self.q_proj.bias.unflatten(0, (self.heads, -1)).to(self.dtype)

    @property
    def b_K(self) -> Float[Tensor, "kv_head d_head"]:
        return self.k_proj.bias.unflatten(0, (self.kv_heads, -1)).to(self.dtype)

    @property
    def b_V(self) -> Float[Tensor, "kv_head d_head"]:
        return self.v_proj.bias.unflatten(0, (self.kv_heads, -1)).to(self.dtype)

    @property
    def b_O(self) -> Float[Tensor, " d_model"]:
        return self.o_proj.bias.to(self.dtype)


class Block(nn.Module):
    """x += attention(norm(x)); x += experts(norm(x))."""

    hook_out_is_single_residual_stream = True
    """What TransformerLens's lenses ask a block: its output is the residual stream itself."""

    def __init__(
        self,
        config: Config,
        layer: int,
        tensors: Mapping[str, Tensor],
        ops: Backend,
        dtype: torch.dtype,
    ):
        super().__init__()
        name, eps = f"model.layers.{layer}", config.rms_norm_eps
        stream = ("batch", "pos", "d_model")
        self.hook_resid_pre = HookPoint(*stream, shared=True)
        self.hook_attn_in = HookPoint(*stream, shared=True, on_request=True)
        self.ln1 = Norm(tensors[f"{name}.input_layernorm.weight"], eps, ops)
        self.attn = Attention(config, layer, tensors, ops, dtype)
        self.hook_attn_out = HookPoint(*stream)
        self.hook_resid_mid = HookPoint(*stream, shared=True)
        self.hook_mlp_in = HookPoint(*stream, shared=True, on_request=True)
        self.ln2 = Norm(tensors[f"{name}.post_attention_layernorm.weight"], eps, ops)
        self.mlp = ExpertLayer(config, layer, tensors, ops)
        self.hook_mlp_out = HookPoint(*stream)
        self.hook_resid_post = HookPoint(*stream, shared=True)

    def forward(
        self,
        x: Float[Tensor, "batch pos d_model"],
        turn: Turn,
        positions: Int[Tensor, "batch pos"],
        cache: KVCache | None,
        program: RouteProgram | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        x = self.hook_resid_pre(x)
        source = self.hook_attn_in(x)
        attended = self.attn(self.ln1(source), source, self.ln1, turn, positions, cache)
        x = self.hook_resid_mid(x + self.hook_attn_out(attended))
        mixed = self.mlp(self.ln2(self.hook_mlp_in(x)), program)
        return self.hook_resid_post(x + self.hook_mlp_out(mixed))
