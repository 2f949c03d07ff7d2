"""The expert layer of a block: router, packed experts and the hook points in between."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gptoss_hooks.points import EditError, HookPoint, Watched
from gptoss_kernels.backend import Backend
from gptoss_kernels.moe import Experts, ExpertTap
from gptoss_kernels.route_edited import RouteProgram, RouteTap
from gptoss_workbench.config import Config
from gptoss_workbench.parts import Projection, frozen, looks

EXPERT_PARTS = tuple(
    f"{half}_proj_{part}" for half in ("gate_up", "down") for part in ("blocks", "scales", "bias")
)
"""What the checkpoint calls the fields of `Experts`, in their order."""


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
