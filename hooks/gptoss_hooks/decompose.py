"""The residual stream taken apart: what an ActivationCache says about components and logits.

resid_post[-1] = embed + sum over layers of (attn_out + mlp_out)
attn_out       = sum over heads of z @ W_O + b_O
logits         = (resid_post[-1] / scale * ln_final.weight) @ W_U

Nothing is folded into the weights. Above all b_V stays where it is: with attention sinks the rows
of a pattern sum to less than one, so b_V is not a constant that b_O could take over. Therefore
`apply_ln_to_stack` divides by the cached scale *and* multiplies by the norm's weight, and the
directions of `logit_attrs` are plain columns of W_U: parts sum to the logit as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

SliceInput: TypeAlias = Any
"""None, an int (drops the axis), a slice, a tuple as for slice(), or a list or tensor of places;
also any object with `.apply(tensor, dim=)`, such as a TransformerLens Slice."""
Parts: TypeAlias = Float[Tensor, "part ... d_model"]
Labelled: TypeAlias = Parts | tuple[Parts, list[str]]
Tokens: TypeAlias = str | int | Int[Tensor, "..."]


def is_single(which: SliceInput) -> bool:
    """Tell whether a slice picks one place and so drops its axis."""
    if isinstance(which, Tensor) and which.ndim == 0:
        return True
    return isinstance(which, int) or getattr(which, "mode", None) == "int"


def take(tensor: Tensor, which: SliceInput, dim: int) -> Tensor:
    """Slice one axis of a tensor; see SliceInput for what is accepted."""
    if which is None:
        return tensor
    if hasattr(which, "apply"):
        return which.apply(tensor, dim=dim)
    if is_single(which):
        return tensor.select(dim, int(which))
    if isinstance(which, tuple):
        which = slice(*which)
    if isinstance(which, slice):
        if which.step is not None and which.step < 0:
            raise ValueError(f"take: a slice needs a positive step, got {which}")
        index: list[Any] = [slice(None)] * tensor.ndim
        index[dim] = which
        return tensor[tuple(index)]
    places = torch.as_tensor(which, device=tensor.device)
    if places.ndim != 1 or places.dtype.is_floating_point:
        raise ValueError(
            "take: expected None, an int, a slice, a tuple as for slice(), or a flat list of "
            f"places; got {which!r}"
        )
    if places.dtype == torch.bool:
        places = places.nonzero()[:, 0]
    places = torch.where(places < 0, places + tensor.shape[dim], places)
    return tensor.index_select(dim, places.long())


class Decomposition:
    """The residual-stream half of ActivationCache, with TransformerLens's argument names."""

    cache_dict: dict[str, Tensor]
    model: Any
    has_batch_dim: bool

    if TYPE_CHECKING:

        def __getitem__(self, key: str | Sequence[Any]) -> Tensor: ...

    def _upto(self, layer: int | None, function: str) -> int:
        """Read a layer argument: None and -1 mean the stream just before the unembedding."""
        n_layers = self.model.cfg.n_layers
        if layer is None or layer == -1:
            return n_layers
        if not 0 <= layer <= n_layers:
            raise ValueError(
                f"{function}: expected layer between 0 and {n_layers} (or None or -1 for the "
                f"unembedding), got {layer}"
            )
        return layer

    def accumulated_resid(
        self,
        layer: int | None = None,
        incl_mid: bool = False,
        apply_ln: bool = False,
        pos_slice: SliceInput = None,
        mlp_input: bool = False,
        return_labels: bool = False,
    ) -> Labelled:
        """Stack the residual stream before each layer up to `layer`, the last before unembedding.

        With `apply_ln` the final stream's norm is taken of every entry anew (the logit lens); for
        an earlier `layer` that layer's cached scale is used instead.
        """
        upto = self._upto(layer, "accumulated_resid")
        n_layers = self.model.cfg.n_layers
        parts, labels = [], []
        for at in range(upto + 1):
            if at == n_layers:
                parts.append(self["resid_post", n_layers - 1])
                labels.append("final_post")
                continue
            parts.append(self["resid_pre", at])
            labels.append(f"{at}_pre")
            if (incl_mid and at < upto) or (mlp_input and at == upto):
                parts.append(self["resid_mid", at])
                labels.append(f"{at}_mid")
        stack = torch.stack([take(part, pos_slice, -2) for part in parts])
        if apply_ln:
            stack = self.apply_ln_to_stack(
                stack, upto, mlp_input, pos_slice, recompute_ln=upto == n_layers
            )
        return (stack, labels) if return_labels else stack

    def decompose_resid(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        mode: Literal["all", "mlp", "attn"] = "all",
        apply_ln: bool = False,
        pos_slice: SliceInput = None,
        incl_embeds: bool = True,
        return_labels: bool = False,
    ) -> Labelled:
        """Stack what the embedding, attention and mlp of every layer before `layer` wrote."""
        if mode not in ("all", "mlp", "attn"):
            raise ValueError(f'decompose_resid: expected mode "all", "mlp" or "attn", got {mode!r}')
        upto = self._upto(layer, "decompose_resid")
        names: list[tuple[str, Any]] = []
        if incl_embeds:
            names.append(("embed", "embed"))
        for at in range(upto):
            if mode != "mlp":
                names.append((f"{at}_attn_out", ("attn_out", at)))
            if mode != "attn":
                names.append((f"{at}_mlp_out", ("mlp_out", at)))
        if mlp_input and mode != "mlp":
            names.append((f"{upto}_attn_out", ("attn_out", upto)))
        labels = [label for label, _ in names]
        parts = [take(self[key], pos_slice, -2) for _, key in names]
        stack = torch.stack(parts) if parts else self._no_parts(pos_slice)
        if apply_ln:
            stack = self.apply_ln_to_stack(stack, upto, mlp_input, pos_slice)
        return (stack, labels) if return_labels else stack

    def stack_head_results(
        self,
        layer: int | None = -1,
        return_labels: bool = False,
        incl_remainder: bool = False,
        pos_slice: SliceInput = None,
        apply_ln: bool = False,
    ) -> Labelled:
        """Stack what each head of the layers before `layer` wrote, as "L0H0", "L0H1", ...

        Cached `hook_result`s are used where kept, else z @ W_O is computed for the asked places
        only. The stack is float32, so with `incl_remainder` (embedding, mlps and b_O in one term)
        it sums to the residual stream.
        """
        upto = self._upto(layer, "stack_head_results")
        results = [self._head_results(at, pos_slice) for at in range(upto)]
        labels = [f"L{at}H{h}" for at in range(upto) for h in range(self.model.cfg.n_heads)]
        stack = torch.cat(results, dim=-2).movedim(-2, 0) if results else self._no_parts(pos_slice)
        if incl_remainder:
            key = ("resid_post", upto - 1) if upto else ("resid_pre", 0)
            stream = take(self[key], pos_slice, -2).float()
            stack = torch.cat([stack, (stream - stack.sum(0))[None]])
            labels.append("remainder")
        if apply_ln:
            stack = self.apply_ln_to_stack(stack, upto, pos_slice=pos_slice)
        return (stack, labels) if return_labels else stack

    def get_full_resid_decomposition(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        expand_neurons: bool = False,
        apply_ln: bool = False,
        pos_slice: SliceInput = None,
        return_labels: bool = False,
    ) -> Labelled:
        """Stack heads, mlps, the embedding and the summed b_O: all parts of the stream at `layer`.

        Neurons belong to experts here and every token has its own, so `expand_neurons` is refused.
        """
        if expand_neurons:
            raise ValueError(
                "get_full_resid_decomposition: expand_neurons=True needs one set of neurons for "
                'all tokens; read cache["expert_out", l] and cache["expert_weights", l] instead'
            )
        upto = self._upto(layer, "get_full_resid_decomposition")
        heads_upto = upto + 1 if mlp_input else upto
        heads = [self._head_results(at, pos_slice).movedim(-2, 0) for at in range(heads_upto)]
        labels = [f"L{at}H{h}" for at in range(heads_upto) for h in range(self.model.cfg.n_heads)]
        mlps, mlp_labels = self.decompose_resid(
            upto, mode="mlp", pos_slice=pos_slice, incl_embeds=False, return_labels=True
        )
        embed = take(self["embed"], pos_slice, -2).float()
        bias = torch.zeros_like(embed)
        for block in self.model.blocks[:heads_upto]:
            bias = bias + block.attn.b_O.float()
        stack = torch.cat([*heads, mlps.float(), embed[None], bias[None]])
        if apply_ln:
            stack = self.apply_ln_to_stack(stack, upto, mlp_input, pos_slice)
        labels += [*mlp_labels, "embed", "bias"]
        return (stack, labels) if return_labels else stack

    def stack_activation(
        self, activation_name: str, layer: int | None = -1, sublayer_type: str | None = None
    ) -> Float[Tensor, "layer ..."] | Int[Tensor, "layer ..."]:
        """Stack one activation over the layers before `layer`."""
        upto = self._upto(layer, "stack_activation")
        return torch.stack([self[activation_name, at, sublayer_type] for at in range(upto)])

    def compute_head_results(self) -> None:
        """Keep every layer's per-head results in the cache, computed from hook_z and W_O."""
        for at in range(self.model.cfg.n_layers):
            name = f"blocks.{at}.attn.hook_result"
            if name not in self.cache_dict:
                self.cache_dict[name] = self._head_results(at, None)

    def _head_results(self, layer: int, pos_slice: SliceInput) -> Float[Tensor, "... head d_model"]:
        """Give one layer's [batch, pos, head, d_model] writes, in float32."""
        kept = self.cache_dict.get(f"blocks.{layer}.attn.hook_result")
        if kept is not None:
            return take(kept, pos_slice, -3).float()
        z = take(self["z", layer], pos_slice, -3)
        w_o = self.model.blocks[layer].attn.W_O.to(z.device)
        return torch.einsum("...nh,nhd->...nd", z.float(), w_o.float())

    def _no_parts(self, pos_slice: SliceInput) -> Parts:
        stream = take(self["resid_pre", 0], pos_slice, -2)
        return stream.new_zeros(0, *stream.shape)

    def apply_ln_to_stack(
        self,
        residual_stack: Parts,
        layer: int | None = None,
        mlp_input: bool = False,
        pos_slice: SliceInput = None,
        batch_slice: SliceInput = None,
        has_batch_dim: bool = True,
        recompute_ln: bool = False,
    ) -> Parts:
        """Give each part's share of a norm's output: part / cached scale * weight, in float32.

        The shares of all parts sum to `hook_out` of that norm: `ln_final` for None and n_layers,
        else the layer's ln1, or ln2 with `mlp_input`. TransformerLens leaves the weight out,
        expecting it folded into the next matrix; here it is applied. `pos_slice` says which places
        the stack holds; `batch_slice` is taken from stack and scale. `recompute_ln` (final norm
        only) normalises every entry by its own scale, as the logit lens does.
        """
        upto = self._upto(layer, "apply_ln_to_stack")
        final = upto == self.model.cfg.n_layers
        if final and mlp_input:
            raise ValueError(
                "apply_ln_to_stack: mlp_input=True needs a layer below n_layers, since the "
                "unembedding has no mlp"
            )
        stack = take(residual_stack, batch_slice, 1) if has_batch_dim else residual_stack
        stack = stack.float()
        if final:
            norm, name = self.model.ln_final, "ln_final.hook_scale"
        else:
            block, which = self.model.blocks[upto], "ln2" if mlp_input else "ln1"
            norm, name = getattr(block, which), f"blocks.{upto}.{which}.hook_scale"
        if recompute_ln and final:
            scale = (stack.square().mean(-1, keepdim=True) + self.model.cfg.eps).sqrt()
        else:
            scale = take(self[name], pos_slice, -2).float()
            if self.has_batch_dim:
                scale = take(scale, batch_slice, 0)
        return stack / scale * norm.weight.float().to(stack.device)

    def logit_attrs(
        self,
        residual_stack: Parts,
        tokens: Tokens,
        incorrect_tokens: Tokens | None = None,
        pos_slice: SliceInput = None,
        batch_slice: SliceInput = None,
        has_batch_dim: bool | None = None,
    ) -> Float[Tensor, "part ..."]:
        """Give each part's contribution to the tokens' logits, or to a logit difference.

            parts, labels = cache.decompose_resid(return_labels=True)
            cache.logit_attrs(parts, tokens=" Paris", incorrect_tokens=" Rome")

        Over all parts of the final stream it sums to the logit itself. A [batch] tensor names one
        token per row, [batch, pos] one per place; `pos_slice` says which places the stack holds.
        """
        batched = self.has_batch_dim if has_batch_dim is None else has_batch_dim
        directions = self._directions(tokens)
        if incorrect_tokens is not None:
            other = self._directions(incorrect_tokens)
            if other.shape != directions.shape:
                raise ValueError(
                    "logit_attrs: expected incorrect_tokens of the same shape as tokens, "
                    f"{list(directions.shape[:-1])}; got {list(other.shape[:-1])}"
                )
            directions = directions - other
        stack = self.apply_ln_to_stack(
            residual_stack, -1, False, pos_slice, batch_slice, has_batch_dim=batched
        )
        per_row = directions.ndim == 2 and stack.ndim == 4 and len(directions) == stack.shape[1]
        if batched and not is_single(batch_slice) and per_row:
            directions = directions.unsqueeze(-2)
        return (stack * directions.to(stack.device)).sum(-1)

    def _directions(self, tokens: Tokens) -> Float[Tensor, "... d_model"]:
        return self.model.tokens_to_residual_directions(tokens).float()


def refuse_half_precision(cache_dict: Mapping[str, Tensor]) -> None:
    """Raise for float16 activations: gpt-oss overflows there."""
    for name, tensor in cache_dict.items():
        if tensor.dtype == torch.float16:
            raise ValueError(
                f"ActivationCache: expected bfloat16 or float32 activations, got float16 for "
                f"{name}; gpt-oss overflows in float16, load it with dtype=torch.bfloat16"
            )
