"""TransformerLens's names for the weights of a model, as views of what is stored."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from gptoss_workbench.layers import Block
from gptoss_workbench.text import TextMixin

if TYPE_CHECKING:
    from gptoss_workbench.parts import Embed, Unembed


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
