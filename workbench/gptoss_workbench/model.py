"""gpt-oss: the forward pass, with experts packed and every activation in reach.

Tokens enter at `embed`, pass the `blocks` (each adds attention, then experts, to the residual
stream), leave through `ln_final` and `unembed`. Module names are TransformerLens's, parameters
carry the checkpoint's; `model.hook_points()` lists what can be read and edited.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptoss_hooks.edits import Edits
from gptoss_hooks.points import HookPoint
from gptoss_hooks.root import NameFilter
from gptoss_kernels import backend as kernels
from gptoss_kernels import rope
from gptoss_workbench import edit_scope
from gptoss_workbench.config import Config
from gptoss_workbench.expert_layer import EXPERT_PARTS
from gptoss_workbench.generate import GenerateMixin
from gptoss_workbench.kv_cache import KVCache
from gptoss_workbench.layers import Block
from gptoss_workbench.lens_config import lens_config
from gptoss_workbench.loaded import Loaded
from gptoss_workbench.moving import Moving
from gptoss_workbench.parts import Embed, Norm, Unembed
from gptoss_workbench.spare import Spare
from gptoss_workbench.text import Batch, as_mask
from gptoss_workbench.tokenizer import Tokenizer
from gptoss_workbench.weights import WeightViews

DTYPES = (torch.bfloat16, torch.float32)


class GptOss(Loaded, WeightViews, GenerateMixin):
    """A gpt-oss model. `gptoss_workbench.load()` makes one from a checkpoint.

    Args:
        config: sizes and constants.
        tensors: weights under their Hugging Face names, experts packed; used as they lie.
        dtype: of the activations, bfloat16 (as released) or float32. Sums are float32 in both.
        backend: 'native', 'triton', 'reference', or None for the fastest available.
        folder: where tokenizer and templates lie, for `save_checkpoint`.
    """

    def __init__(
        self,
        config: Config,
        tensors: Mapping[str, Tensor],
        *,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
        backend: str | None = None,
        tokenizer: Tokenizer | None = None,
        name: str = "gpt-oss",
        fingerprint: str | None = None,
        generation_config: Mapping[str, Any] | None = None,
        folder: Path | None = None,
    ):
        super().__init__()
        if dtype not in DTYPES:
            raise ValueError(
                f"dtype {dtype} is not supported: use bfloat16 or float32. "
                "float16 overflows in gpt-oss (activations beyond 65504)."
            )
        device = torch.device(device)
        ops = kernels.select(backend, device)
        if device.type != "cpu" and not isinstance(tensors, Moving):
            tensors = Moving(dict(tensors), device)
        self.config, self.activation_dtype, self.backend = config, dtype, ops.name
        self.tokenizer, self.name, self.fingerprint = tokenizer, name, fingerprint
        self.folder = folder
        self.generation_config = dict(generation_config or {})
        self.cfg = lens_config(config, dtype, device, name)
        self.n_layers = config.num_hidden_layers
        self.embed = Embed(tensors["model.embed_tokens.weight"], dtype)
        self.hook_embed = HookPoint("batch", "pos", "d_model", shared=True)
        blocks = nn.ModuleList(Block(config, i, tensors, ops, dtype) for i in range(self.n_layers))
        self.blocks = cast(Sequence[Block], blocks)
        self.ln_final = Norm(tensors["model.norm.weight"], config.rms_norm_eps, ops)
        self.unembed = Unembed(tensors["lm_head.weight"], ops)
        inverse, concentration = _frequencies(config)
        self.frequencies = rope.Frequencies(inverse.to(device), concentration)
        self.last_trace = self.last_generation = None
        self.spare = Spare()
        self.setup()

    def forward(
        self,
        input: Any = None,
        return_type: str | None = "logits",
        loss_per_token: bool = False,
        prepend_bos: bool = False,
        padding_side: str | None = None,
        attention_mask: Tensor | None = None,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
        past_key_values: KVCache | None = None,
        *,
        messages: Any = None,
        logits_to_keep: int = 0,
        edits: Edits = (),
    ) -> Any:
        """Run the model.

        Args:
            input: tokens [batch, pos], text, a Generation, a Trace, or with `start_at_layer` the
                residual entering it. Rows of different length are padded on the right.
            messages: a harmony conversation instead of `input`.
            return_type: "logits", "loss", "both" or None (nothing beyond what hooks ask for).
            attention_mask: [batch, pos], 0 or False on padding (left or right).
            stop_at_layer: return the residual entering this layer instead of logits.
            past_key_values: a KVCache; the input continues it, and it grows in place.
            logits_to_keep: only the last so many positions' logits; 0 means all.
            edits: interventions, in the order they act, such as [ban(3, layers=2)]; or one.

        Returns:
            logits [batch, pos, vocab] in the model's dtype, loss (nats per token), both, or None.
        """
        if isinstance(return_type, Tensor):
            raise ValueError("forward: pass the mask by name, attention_mask=")
        if return_type not in ("logits", "loss", "both", None):
            raise ValueError(f"return_type is logits, loss, both or None; got {return_type!r}")
        if start_at_layer is not None and return_type in ("loss", "both"):
            raise ValueError("start_at_layer: a residual has no tokens to take a loss on")
        input = self.asked(input, messages, "forward")
        batch = self._batch(input, attention_mask, padding_side, prepend_bos, start_at_layer)
        tokens = batch.tokens if start_at_layer is None else None
        cache = past_key_values
        positions = (cache or KVCache(self.config)).positions(batch.mask)
        self.check_length(int(positions.max()) + 1)
        with self.edited(*edits), ExitStack() as leaving:
            programs = edit_scope.begin(self, tokens, positions, cache, leaving)
            x = self._start(input, batch, start_at_layer)
            turn = rope.tables(positions, self.frequencies)
            for layer in range(self.n_layers)[start_at_layer:stop_at_layer]:
                program = programs[layer] if programs else None
                x = self.blocks[layer](x, turn, positions, cache, program)
            if cache is not None:
                cache.advance(batch.mask, tokens)
            if stop_at_layer is not None:
                return x
            if return_type is None and not self._readout_observed():
                return None
            logits = self.unembed(self.ln_final(x)[:, -logits_to_keep:])
            return self._result(logits, batch, return_type, loss_per_token)

    def _batch(
        self,
        input: Any,
        mask: Tensor | None,
        padding_side: str | None,
        prepend_bos: bool,
        start_at_layer: int | None,
    ) -> Batch:
        """Tokens and mask; no tokens where a residual is given."""
        if start_at_layer is None:
            return self.read(input, mask, padding_side, prepend_bos)
        if not isinstance(input, Tensor) or input.ndim != 3:
            raise ValueError("start_at_layer: input must be a residual [batch, pos, d_model]")
        return Batch(torch.empty(0), as_mask(mask, input.shape[:2], input.device))

    def _start(self, input: Any, batch: Batch, start_at_layer: int | None) -> Tensor:
        """The residual stream before the first layer that runs."""
        if start_at_layer is not None:
            return input.to(self.activation_dtype)
        x = self.embed(batch.tokens)
        if torch.is_grad_enabled() and self._gradients_wanted():
            x.requires_grad_()
        return self.hook_embed(x)

    def _gradients_wanted(self) -> bool:
        """Whether an observer may differentiate: then the graph starts at the embedding."""
        state = self.__dict__.get("__nnsight__")
        if state is not None and state.active()[0] is not None:
            return True
        return any(point.edited_or_differentiated for point in self.hook_dict.values())

    def _readout_observed(self) -> bool:
        last = ("ln_final.", "unembed.")
        return any(p.observed for name, p in self.hook_dict.items() if name.startswith(last))

    def _result(
        self, logits: Tensor, batch: Batch, return_type: str | None, per_token: bool
    ) -> Any:
        if return_type in (None, "logits"):
            return logits if return_type else None
        loss = _loss(logits, batch, per_token)
        return (logits, loss) if return_type == "both" else loss

    # -- what TransformerLens calls these -------------------------------------------------------

    def set_use_attn_result(self, use: bool) -> None:
        """Keep per-head results in caches without a filter."""
        self.cfg.use_attn_result = use

    def set_use_split_qkv_input(self, use: bool) -> None:
        """Keep the per-head inputs of q, k and v in caches without a filter."""
        self.cfg.use_split_qkv_input = use

    def set_use_attn_in(self, use: bool) -> None:
        """Keep attention's input in caches without a filter."""
        self.cfg.use_attn_in = use

    def set_use_hook_mlp_in(self, use: bool) -> None:
        """Keep the expert layer's input in caches without a filter."""
        self.cfg.use_hook_mlp_in = use

    def _kept(self, name: str) -> bool:
        switches = (
            ("hook_result", self.cfg.use_attn_result),
            ("_input", self.cfg.use_split_qkv_input),
            ("hook_attn_in", self.cfg.use_attn_in),
            ("hook_mlp_in", self.cfg.use_hook_mlp_in),
        )
        return super()._kept(name) or any(name.endswith(end) and on for end, on in switches)

    def axis_sizes(self, batch: int, pos: int, past: int = 0) -> dict[str, int]:
        """Length of every axis for an input of this size."""
        cfg = self.cfg
        return {
            "batch": batch, "pos": pos, "query": pos, "key": past + pos, "one": 1,
            "head": cfg.n_heads, "kv_head": cfg.n_key_value_heads, "d_head": cfg.d_head,
            "d_model": cfg.d_model, "expert": cfg.num_experts, "k": cfg.experts_per_token,
            "d_ff": cfg.d_mlp, "vocab": cfg.d_vocab,
        }  # fmt: skip

    # -- the rest --------------------------------------------------------------------------------

    def new_cache(self, room: int = 0) -> KVCache:
        """An empty KV cache for `past_key_values=`, with memory set aside for `room` tokens."""
        return KVCache(self.config, room=room)

    def trace(
        self,
        input: Any = None,
        *,
        attention_mask: Tensor | None = None,
        padding_side: str | None = None,
        messages: Any = None,
        names_filter: NameFilter = None,
        pos_slice: Any = None,
        routing: bool = True,
        router_logits: bool = False,
        device: torch.device | str = "cpu",
        edits: Edits = (),
    ):
        """One forward pass recorded as a `Trace`: tokens, spans, routing, chosen activations.

        model.trace("What is 2 + 2?", names_filter=["resid_post"])

        `input` is what `forward` takes; `pos_slice` keeps a run of neighbouring places.
        """
        from gptoss_workbench.trace_run import trace_run

        input = self.asked(input, messages, "trace")
        tokens, mask = self.read(input, attention_mask, padding_side)
        with self.edited(*edits):
            return trace_run(
                self, tokens, mask, names_filter=names_filter, pos_slice=pos_slice,
                routing=routing, router_logits=router_logits, device=device,
            )  # fmt: skip

    def checkpoint_tensors(self) -> dict[str, Tensor]:
        """All weights under their Hugging Face names, experts packed.

        What a backend put into an order of its own is put back into the checkpoint's on the CPU.
        """
        found = {_checkpoint_name(name): tensor.data for name, tensor in self.named_parameters()}
        for layer, block in enumerate(self.blocks):
            name = f"model.layers.{layer}.mlp.experts"
            if f"{name}.{EXPERT_PARTS[0]}" not in found:
                parts = zip(EXPERT_PARTS, block.mlp.stored(), strict=True)
                found |= {f"{name}.{part}": tensor.cpu() for part, tensor in parts}
        return found

    def train(self, mode: bool = True) -> "GptOss":
        """Stay in evaluation mode: the weights are frozen and nothing here is random."""
        return super().train(False)

    def __repr__(self) -> str:
        c = self.config
        return (
            f"GptOss({self.name!r}: {c.num_hidden_layers} layers, d_model {c.hidden_size}, "
            f"{c.num_local_experts} experts top-{c.num_experts_per_tok}, "
            f"{c.num_attention_heads}/{c.num_key_value_heads} heads, vocabulary {c.vocab_size}; "
            f"{str(self.activation_dtype)[6:]} on {self.cfg.device}, {self.backend})"
        )


def _frequencies(config: Config) -> rope.Frequencies:
    scaling = config.rope_scaling
    if scaling is None:
        return rope.plain(config.head_dim, config.rope_theta)
    return rope.yarn(
        config.head_dim,
        config.rope_theta,
        factor=scaling.factor,
        original_context=scaling.original_max_position_embeddings,
        beta_fast=scaling.beta_fast,
        beta_slow=scaling.beta_slow,
        truncate=scaling.truncate,
    )


def _loss(logits: Tensor, batch: Batch, per_token: bool) -> Tensor:
    """Next-token cross entropy in nats over real tokens; [batch, pos - 1] with `per_token`."""
    known = batch.mask[:, 1:] & batch.mask[:, :-1]
    wide = logits[:, :-1].float().transpose(1, 2)
    loss = F.cross_entropy(wide, batch.tokens[:, 1:], reduction="none") * known
    return loss if per_token else loss.sum() / known.sum()


_NAMES = (
    ("blocks.", "model.layers."),
    (".ln1.", ".input_layernorm."),
    (".ln2.", ".post_attention_layernorm."),
    (".attn.", ".self_attn."),
    (".mlp.gate_up", ".mlp.experts.gate_up"),
    (".mlp.down", ".mlp.experts.down"),
    ("ln_final.", "model.norm."),
    ("unembed.", "lm_head."),
    ("embed.weight", "model.embed_tokens.weight"),
)


def _checkpoint_name(name: str) -> str:
    for ours, theirs in _NAMES:
        name = name.replace(ours, theirs)
    return name
