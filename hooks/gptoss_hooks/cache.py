"""Activations of one run, by name: the interface of TransformerLens's ActivationCache.

`cache["resid_post", 5]`, `cache["q", 3]`, `cache["scale", 3, "ln1"]`, `cache["embed"]` and full
hook names all work, and so do the points gpt-oss adds: `cache["expert_post", 2]`,
`cache["router_logits", 2]`, `cache["sink", 0]`. Negative layers count from the end.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import ItemsView, Iterator, KeysView, Sequence, ValuesView
from typing import Any

import torch
from torch import Tensor

from gptoss_hooks import axes
from gptoss_hooks.decompose import (
    Decomposition,
    SliceInput,
    is_single,
    refuse_half_precision,
    take,
)

IN_ATTENTION = {"q", "k", "v", "z", "rot_q", "rot_k", "result", "pattern", "attn_scores", "sink"}
IN_ATTENTION |= {"q_input", "k_input", "v_input"}
IN_MLP = {"pre", "post", "mid", "router_logits", "expert_indices", "expert_weights"}
IN_MLP |= {"expert_gate", "expert_up", "expert_post", "expert_out"}
SHORT_FOR = {
    "attn": "pattern",
    "attn_logits": "attn_scores",
    "key": "k",
    "query": "q",
    "value": "v",
    "mlp_pre": "pre",
    "mlp_mid": "mid",
    "mlp_post": "post",
}
PART = {"a": "attn", "attention": "attn", "m": "mlp", "b": "", "block": "", "blocks": ""}
_JOINED = re.compile(r"([a-z_]+?)(\d+)([a-z]?.*)")


def act_name(name: str, layer: int | None = None, layer_type: str | None = None) -> str:
    """Write a short name out as a hook name, by TransformerLens's rules plus the new points.

    act_name("k", 6)             # "blocks.6.attn.hook_k"
    act_name("scale", 4, "ln1")  # "blocks.4.ln1.hook_scale", as does act_name("scale4ln1")
    """
    if ("." in name or name.startswith("hook_")) and layer is None and layer_type is None:
        return name
    joined = _JOINED.fullmatch(name)
    if joined is not None and layer is None:
        name, layer, layer_type = joined[1], int(joined[2]), joined[3] or None
    name = SHORT_FOR.get(name, name)
    point = name.removesuffix("_grad")
    if point in IN_ATTENTION:
        part = "attn"
    elif point in IN_MLP:
        part = "mlp"
    else:
        part = PART.get(layer_type or "", layer_type or "")
    if layer is None and point in ("scale", "normalized"):
        part = part or "ln_final"
    block = [] if layer is None else [f"blocks.{layer}"]
    return ".".join([*block, *([part] if part else []), f"hook_{name}"])


class ActivationCache(Decomposition):
    """Named activations of one run, with the model they came from.

    logits, cache = model.run_with_cache("6 * 7 =")
    cache["resid_post", -1]  # [batch, pos, d_model]
    """

    def __init__(self, cache_dict: dict[str, Tensor], model: Any, has_batch_dim: bool = True):
        refuse_half_precision(cache_dict)
        self.cache_dict = cache_dict
        self.model = model
        self.has_batch_dim = has_batch_dim

    @property
    def has_embed(self) -> bool:
        """Whether the embedding was kept."""
        return "hook_embed" in self.cache_dict

    def __getitem__(self, key: str | Sequence[Any]) -> Tensor:
        """Look an activation up by full name, alias, short name or (name, layer, part)."""
        name = self._name(key)
        if name not in self.cache_dict and hasattr(self.model, "canonical_hook_name"):
            name = self.model.canonical_hook_name(name)
        if name in self.cache_dict:
            return self.cache_dict[name]
        near = difflib.get_close_matches(name, self.cache_dict, n=3)
        hint = f"; near it are {', '.join(near)}" if near else ""
        raise KeyError(
            f"ActivationCache: {name} was not kept in this run (asked for as {key!r}){hint}. "
            "Run again with a names_filter= that includes it."
        )

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, (str, tuple)):
            return False
        try:
            self[key]
        except (KeyError, ValueError):
            return False
        return True

    def _name(self, key: str | Sequence[Any]) -> str:
        if isinstance(key, str):
            return key if key in self.cache_dict else act_name(key)
        name, *rest = key
        if rest and rest[0] is not None:
            n_layers = self.model.cfg.n_layers
            if not -n_layers <= rest[0] < n_layers:
                raise KeyError(
                    f"ActivationCache: expected a layer between {-n_layers} and {n_layers - 1}, "
                    f"got {rest[0]} in {tuple(key)!r}"
                )
            rest[0] %= n_layers
        return act_name(name, *rest)

    def keys(self) -> KeysView[str]:
        return self.cache_dict.keys()

    def values(self) -> ValuesView[Tensor]:
        return self.cache_dict.values()

    def items(self) -> ItemsView[str, Tensor]:
        return self.cache_dict.items()

    def __iter__(self) -> Iterator[str]:
        return iter(self.cache_dict)

    def __len__(self) -> int:
        return len(self.cache_dict)

    def to(self, device: str | torch.device) -> ActivationCache:
        """Move every activation to a device, in place; return the cache."""
        self.cache_dict = {name: value.to(device) for name, value in self.items()}
        return self

    def remove_batch_dim(self) -> ActivationCache:
        """Drop the batch axis of a cache of one row, in place; return the cache."""
        if not self.has_batch_dim:
            return self
        rows = {len(value) for value in self.values()}
        if rows - {1}:
            raise ValueError(
                f"remove_batch_dim: expected a cache of one row, got {max(rows)} rows; pick one "
                "with apply_slice_to_batch_dim(row)"
            )
        self.cache_dict = {name: value[0] for name, value in self.items()}
        self.has_batch_dim = False
        return self

    def apply_slice_to_batch_dim(self, batch_slice: SliceInput) -> ActivationCache:
        """Give a new cache with some rows of the batch; an int drops the batch axis."""
        if not self.has_batch_dim:
            raise ValueError("apply_slice_to_batch_dim: this cache has no batch axis any more")
        rows = {name: take(value, batch_slice, 0) for name, value in self.items()}
        return ActivationCache(rows, self.model, has_batch_dim=not is_single(batch_slice))

    def __repr__(self) -> str:
        size = sum(value.nbytes for value in self.values()) / 2**20
        layers = {axes.layer_of(name) for name in self} - {None}
        batch = "" if self.has_batch_dim else ", no batch axis"
        head = (
            f"ActivationCache: {len(self)} activations, {len(layers)} layers, {size:.1f} MiB{batch}"
        )
        return "\n".join([head, *self._lines()])

    def _lines(self) -> list[str]:
        """Write one line per kind of point, the layers of a kind taken together."""
        kinds = Counter(re.sub(r"blocks\.\d+\.", "blocks.{l}.", name) for name in self)
        first: dict[str, Tensor] = {}
        for name, value in self.items():
            first.setdefault(re.sub(r"blocks\.\d+\.", "blocks.{l}.", name), value)
        lines = []
        for kind, count in kinds.items():
            value = first[kind]
            times = f" x{count}" if "{l}" in kind else ""
            dtype = str(value.dtype).removeprefix("torch.")
            lines.append(f"  {kind}{times}  {list(value.shape)} {dtype}")
        return lines
