"""TransformerLens's names for the weights of a model, as views of what is stored."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gptoss_kernels.mxfp4 import unpack
from gptoss_workbench.layers import Block
from gptoss_workbench.text import TextMixin

if TYPE_CHECKING:
    from gptoss_workbench.parts import Embed, Unembed


_look_up: Any = nn.Module.__getattr__
DENSE = ("W_in", "W_gate", "W_out", "b_in", "b_out")
"""What TransformerLens calls the weights of an MLP; experts are packed, so there are none."""


class ExpertWeights(NamedTuple):
    """One expert, decoded: out = (swiglu(x @ gate + b_gate, x @ up + b_up)) @ down + b_down."""

    gate: Float[Tensor, "d_model d_ff"]
    """TransformerLens's W_gate"""
    up: Float[Tensor, "d_model d_ff"]
    """TransformerLens's W_in"""
    down: Float[Tensor, "d_ff d_model"]
    """TransformerLens's W_out"""
    b_gate: Float[Tensor, " d_ff"]
    b_up: Float[Tensor, " d_ff"]
    b_down: Float[Tensor, " d_model"]


class WeightViews(TextMixin):
    """W_E, W_U, W_Q ... of a model, in its dtype. Per-layer stacks are made when asked for.

    Parameters, and in bfloat16 what is no stack, are views of the mapped files: torch.save of one
    writes the whole file, of its .clone() only itself.
    """

    activation_dtype: torch.dtype
    embed: "Embed"
    unembed: "Unembed"
    blocks: Sequence[Block]

    def _stacked(self, name: str) -> Tensor:
        parts = [getattr(block.attn, name) for block in self.blocks]
        return torch.stack(parts).to(self.activation_dtype)

    @property
    def W_E(self) -> Float[Tensor, "vocab d_model"]:
        return self.embed.weight.to(self.activation_dtype)

    @property
    def W_U(self) -> Float[Tensor, "d_model vocab"]:
        return self.unembed.weight.mT.to(self.activation_dtype)

    @property
    def b_U(self) -> Float[Tensor, " vocab"]:
        """Zeros: gpt-oss unembeds without a bias."""
        weight = self.unembed.weight
        return torch.zeros(weight.shape[0], dtype=self.activation_dtype, device=weight.device)

    @property
    def W_Q(self) -> Float[Tensor, "layer head d_model d_head"]:
        return self._stacked("W_Q")

    @property
    def W_K(self) -> Float[Tensor, "layer kv_head d_model d_head"]:
        return self._stacked("W_K")

    @property
    def W_V(self) -> Float[Tensor, "layer kv_head d_model d_head"]:
        return self._stacked("W_V")

    @property
    def W_O(self) -> Float[Tensor, "layer head d_head d_model"]:
        return self._stacked("W_O")

    @property
    def b_Q(self) -> Float[Tensor, "layer head d_head"]:
        return self._stacked("b_Q")

    @property
    def b_K(self) -> Float[Tensor, "layer kv_head d_head"]:
        return self._stacked("b_K")

    @property
    def b_V(self) -> Float[Tensor, "layer kv_head d_head"]:
        return self._stacked("b_V")

    @property
    def b_O(self) -> Float[Tensor, "layer d_model"]:
        return self._stacked("b_O")

    def expert_weights(self, layer: int, expert: int) -> ExpertWeights:
        """Decode one expert of a layer: copies in the dtype of the activations.

        model.expert_weights(2, 5).down[17]  # what neuron 17 writes, [d_model]
        """
        count = self.config.num_local_experts
        if not -len(self.blocks) <= layer < len(self.blocks) or not 0 <= expert < count:
            raise ValueError(
                f"expert_weights: expected a layer of {len(self.blocks)} and an expert of {count}, "
                f"got layer={layer}, expert={expert}"
            )
        dtype, own = self.activation_dtype, slice(expert, expert + 1)
        stored = self.blocks[layer].mlp.stored(own)
        gate_up = unpack(stored.gate_up_blocks[0], stored.gate_up_scales[0], dtype)
        down = unpack(stored.down_blocks[0], stored.down_scales[0], dtype)
        bias = stored.gate_up_bias[0].to(dtype)
        return ExpertWeights(
            gate_up[0::2].mT, gate_up[1::2].mT, down.mT,
            bias[0::2], bias[1::2], stored.down_bias[0].to(dtype),
        )  # fmt: skip

    def __getattr__(self, name: str) -> Any:
        if name in DENSE:
            raise AttributeError(
                f"{name}: experts stay packed, so there is no stack of them; "
                "model.expert_weights(layer, expert) decodes one into gate, up and down"
            )
        return _look_up(self, name)

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Tensor, " d_model"]:
        """Sum of the output biases b_O before `layer`'s input (with `mlp_input`, its own too).

        Expert biases are not among them: which of them are added depends on the token's route.
        b_V is not either: sinks make pattern rows sum to less than 1, so it cannot be folded.
        """
        total = torch.zeros(self.cfg.d_model, device=self.cfg.device)
        for block in self.blocks[: layer + int(mlp_input)]:
            total = total + block.attn.b_O.float()
        return total.to(self.activation_dtype)

    def tokens_to_residual_directions(
        self, tokens: str | int | Tensor
    ) -> Float[Tensor, "*tokens d_model"]:
        """Columns of W_U: the residual direction that raises each token's logit."""
        if isinstance(tokens, str):
            tokens = self.to_single_token(tokens)
        index = torch.as_tensor(tokens, device=self.unembed.weight.device)
        return self.unembed.weight[index].to(self.activation_dtype)
