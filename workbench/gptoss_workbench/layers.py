"""The parts of a gpt-oss block, with every hook point visible in the line where it fires."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gptoss_hooks.points import EditError, HookPoint, Watched, traced
from gptoss_kernels.attention import AttentionTap
from gptoss_kernels.backend import Backend
from gptoss_kernels.moe import Experts, ExpertTap
from gptoss_kernels.rms_norm import NormTap
from gptoss_kernels.route_edited import RouteProgram, RouteTap
from gptoss_workbench.config import Config
from gptoss_workbench.kv_cache import KVCache

EXPERT_PARTS = tuple(
    f"{half}_proj_{part}" for half in ("gate_up", "down") for part in ("blocks", "scales", "bias")
)
"""What the checkpoint calls the fields of `Experts`, in their order."""

Turn = tuple[Tensor, Tensor]
"""cos and sin of every position, [batch, pos, d_head / 2]"""


def frozen(tensor: Tensor) -> nn.Parameter:
    """A weight: part of the module, never trained."""
    return nn.Parameter(tensor, requires_grad=False)


def looks(*points: HookPoint) -> list[HookPoint | None]:
    """Each point that is observed, else None. A running trace in the group turns all of them on:
    what it will ask for next is known only once it has been served."""
    found = [point if point.observed else None for point in points]
    return list(points) if any(point and traced(point) for point in found) else found


def moved(fused: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """A fused result, moved by what an edit of its parts changed (float32).

    Parts that were only looked at leave it as it is, bit for bit; gradients reach them still.
    """
    return (fused.float() + (after - before)).to(fused.dtype)


class Projection(nn.Module):
    """A stored weight [outer, inner] and bias [outer]."""

    def __init__(self, tensors: Mapping[str, Tensor], name: str):
        super().__init__()
        self.weight = frozen(tensors[f"{name}.weight"])
        self.bias = frozen(tensors[f"{name}.bias"])


class Norm(nn.Module):
    """RMSNorm with its denominator and its result before the weight in view."""

    def __init__(self, weight: Tensor, eps: float, ops: Backend):
        super().__init__()
        self.weight, self.eps, self.ops = frozen(weight), eps, ops
        self.hook_scale = HookPoint("batch", "pos", "one", dtype=torch.float32)
        self.hook_normalized = HookPoint("batch", "pos", "d_model", dtype=torch.float32)
        self.hook_out = HookPoint("batch", "pos", "d_model")

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        tap = NormTap(*looks(self.hook_scale, self.hook_normalized))
        return self.hook_out(self.ops.rms_norm(x, self.weight, self.eps, tap=tap))


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


class ExpertLayer(nn.Module):
    """Router and packed experts. A slot is one of a token's k chosen experts, best first.

    Experts are parameters with the checkpoint's names, or buffers in an order that a backend packs
    them in, once and without loss; never both.
    """

    def __init__(self, config: Config, layer: int, tensors: Mapping[str, Tensor], ops: Backend):
        super().__init__()
        self.ops, self.limit, self.k = ops, config.swiglu_limit, config.num_experts_per_tok
        name = f"model.layers.{layer}.mlp"
        self.router = Projection(tensors, f"{name}.router")
        self.n_experts = self.router.weight.shape[0]
        self.hook_router_logits = HookPoint("batch", "pos", "expert", dtype=torch.float32)
        self.hook_expert_indices = HookPoint("batch", "pos", "k", dtype=torch.int64)
        self.hook_expert_weights = HookPoint("batch", "pos", "k", dtype=torch.float32)
        slot = ("batch", "pos", "k")
        self.hook_expert_gate = HookPoint(*slot, "d_ff", dtype=torch.float32)
        self.hook_expert_up = HookPoint(*slot, "d_ff", dtype=torch.float32)
        takes = ("neuron", "slot") if ops.expert_edits else ("", "")
        self.hook_expert_post = HookPoint(*slot, "d_ff", takes=takes[0])
        self.hook_expert_out = HookPoint(*slot, "d_model", dtype=torch.float32, takes=takes[1])
        packed = ops.pack_experts(Experts(*(tensors[f"{name}.experts.{p}"] for p in EXPERT_PARTS)))
        if isinstance(packed, Experts):
            for part, tensor in zip(EXPERT_PARTS, packed, strict=True):
                self.register_parameter(part, frozen(tensor))
        else:
            for part, tensor in packed._asdict().items():
                if isinstance(tensor, Tensor):
                    self.register_buffer(f"packed_{part}", tensor)
        self._order = packed._replace(
            **{n: None for n, part in packed._asdict().items() if isinstance(part, Tensor)}
        )

    @property
    def experts(self) -> Experts:
        """The packed weights as the kernels take them."""
        if isinstance(self._order, Experts):
            return Experts(*(getattr(self, part) for part in EXPERT_PARTS))
        return self._order._replace(
            **{
                n: getattr(self, f"packed_{n}")
                for n, p in self._order._asdict().items()
                if p is None
            }
        )

    def stored(self, experts: slice = slice(None)) -> Experts:
        """Experts as in the checkpoint: views, or copies where a backend reordered them."""
        own = self.experts
        some = type(own)(*(part[experts] if isinstance(part, Tensor) else part for part in own))
        return some if isinstance(some, Experts) else some.unpack()

    def forward(
        self, x: Float[Tensor, "batch pos d_model"], program: RouteProgram | None = None
    ) -> Float[Tensor, "batch pos d_model"]:
        weight, bias = self.router.weight, self.router.bias
        if program is None and self.ops.router and not self._rerouted(x):
            logits, route = self.ops.router(x, weight, bias, self.k, dtype=torch.float32)
            self.hook_router_logits(logits)
            indices, weights = self._reselect(route[0]), self.hook_expert_weights(route[1])
        else:
            logits = self.ops.linear(x, weight, bias, dtype=torch.float32)
            if program is None:
                logits = self.hook_router_logits(logits)
                indices = self._reselect(self.ops.choose(logits, self.k))
                weights = self.hook_expert_weights(self.ops.weigh(logits, indices))
            else:
                indices, weights = self._edited(logits, program)
        points = (self.hook_expert_gate, self.hook_expert_up)
        tap = ExpertTap(*looks(*points, self.hook_expert_post, self.hook_expert_out))
        given = {"limit": self.limit, "tap": tap}
        if self.hook_expert_post.in_kernel or self.hook_expert_out.in_kernel:
            given["edits"] = self._in_kernel(indices)
        return self.ops.moe(x, indices, weights, self.experts, **given)

    def _in_kernel(self, indices: Tensor) -> Any:
        """Edits of neurons and slots that the kernel obeys."""
        given: dict[str, Tensor] = {}
        for point in (self.hook_expert_post, self.hook_expert_out):
            if point.in_kernel:
                given |= point.in_kernel(indices)
        assert self.ops.expert_edits is not None
        return self.ops.expert_edits(**given)

    def _rerouted(self, x: Tensor) -> bool:
        """Whether more than reading is done on the way to the choice of experts."""
        seen = looks(self.hook_router_logits, self.hook_expert_indices)
        edited = any(point and point.edited_or_differentiated for point in seen)
        return edited or (torch.is_grad_enabled() and x.requires_grad)

    def _edited(self, logits: Tensor, program: RouteProgram) -> tuple[Tensor, Tensor]:
        """Choose and weigh under a program; hook functions act after its steps.

        Who only reads the choice is shown it afterwards, so that it may be made in one kernel.
        """
        first, second = looks(self.hook_router_logits, self.hook_expert_indices)
        inside = second is not None and second.edited_or_differentiated
        tap = RouteTap(first, self._reselect if inside else None)
        indices, weights = self.ops.route_edited(logits, self.k, program, tap=tap)
        indices = indices if inside else self._reselect(indices)
        return indices, self.hook_expert_weights(weights)

    def _reselect(self, chosen: Int[Tensor, "batch pos k"]) -> Int[Tensor, "batch pos k"]:
        point = self.hook_expert_indices
        if not point.observed:
            return chosen
        if not point.edited_or_differentiated:
            return point(chosen)
        watched = Watched(chosen)
        indices = point(chosen)
        if watched.changed(indices):
            self._check(indices)
        return indices

    def _check(self, indices: Tensor) -> None:
        name = self.hook_expert_indices.name
        low, high = int(indices.min()), int(indices.max())
        if low < 0 or high >= self.n_experts:
            raise EditError(
                f"{name}: experts are 0 to {self.n_experts - 1}; the edit holds {low} to {high}"
            )
        ordered = indices.sort(-1).values
        if bool((ordered[..., 1:] == ordered[..., :-1]).any()):
            k = ordered.shape[-1]
            raise EditError(f"{name}: the {k} experts of a token must differ; one repeats")


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
