"""transformers as a contestant, its experts dequantised, and two libraries of hooks around it.

`body` is what is timed: the unembedding is cut to a few rows, so that figures count layers.
The three share one set of weights; TransformerLens's bridge replaces modules, so each has its own.
"""

import copy
import time
from collections.abc import Callable

import child
import torch
from torch import nn

ROWS = 128
"""Of the unembedding."""


class Loaded:
    """The first layers of a checkpoint, dequantised, once for each library that is here."""

    def load(self, path: str, layers: int, dtype: str) -> dict:
        """Seconds to load, and why a library is missing."""
        from transformers import DynamicCache, GptOssConfig, GptOssForCausalLM, Mxfp4Config

        started = time.perf_counter()
        config = GptOssConfig.from_pretrained(path)
        config.num_hidden_layers, config.layer_types = layers, config.layer_types[:layers]
        model, told = GptOssForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=getattr(torch, dtype),
            quantization_config=Mxfp4Config(dequantize=True),
            output_loading_info=True,
        )
        if told["missing_keys"]:
            raise ValueError(f"transformers finds no {sorted(told['missing_keys'])} in {path}")
        model.eval().to(getattr(torch, dtype)).lm_head = narrowed(model.lm_head)
        seconds = time.perf_counter() - started
        self.new_cache = lambda: DynamicCache(config=model.config)
        self.runs: dict[str, Callable] = {"transformers": plain(model)}
        missing = {}
        for name, wrapped in (("TransformerLens", lens), ("nnsight", traced)):
            try:
                self.runs |= wrapped(twin(model))
            except ImportError as error:
                missing[name] = str(error)
        return {"seconds": seconds, "variants": list(self.runs), "missing": missing}

    def prefill(self, tokens: list[int], threads: int, variant: str) -> float:
        """Seconds for a prompt, its cache filled."""
        torch.set_num_threads(threads)
        started = time.perf_counter()
        with torch.no_grad():
            self.runs[variant](torch.tensor([tokens]), self.new_cache())
        return time.perf_counter() - started

    def fill(self, tokens: list[int], threads: int) -> None:
        """Begin a context that `decode` continues; each variant has a cache of its own."""
        torch.set_num_threads(threads)
        self.caches = {variant: self.new_cache() for variant in self.runs}
        with torch.no_grad():
            for cache in self.caches.values():
                self.runs["transformers"](torch.tensor([tokens]), cache)

    def decode(self, tokens: list[int], variant: str) -> float:
        """Seconds for tokens, one at a time."""
        started = time.perf_counter()
        with torch.no_grad():
            for token in tokens:
                self.runs[variant](torch.tensor([[token]]), self.caches[variant])
        return time.perf_counter() - started


def narrowed(head: nn.Linear) -> nn.Linear:
    """The first rows of an unembedding, without a gradient."""
    cut = nn.Linear(head.in_features, ROWS, bias=False, dtype=head.weight.dtype)
    cut.weight = nn.Parameter(head.weight[:ROWS].detach().clone(), requires_grad=False)
    return cut


def twin(model: nn.Module) -> nn.Module:
    """Other modules over the same tensors."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def plain(model: nn.Module) -> Callable:
    return lambda tokens, cache: model(
        tokens, past_key_values=cache, use_cache=True, logits_to_keep=1
    )


def lens(model: nn.Module) -> dict[str, Callable]:
    """TransformerLens's bridge: nothing observed, and the residual stream kept."""
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    bridge = build_bridge_from_module(model, "GptOssForCausalLM", hf_config=model.config)
    how = {"use_cache": True, "logits_to_keep": 1}

    def residual(tokens, cache):
        return bridge.run_with_cache(
            tokens,
            names_filter=lambda name: name.endswith("hook_resid_post"),
            past_key_values=cache,
            **how,
        )

    return {
        "TransformerLens, hooks off": lambda tokens, cache: bridge(
            tokens, past_key_values=cache, **how
        ),
        "TransformerLens, residual": residual,
    }


def traced(model: nn.Module) -> dict[str, Callable]:
    """nnsight's trace, keeping every layer's output."""
    from nnsight import NNsight

    watched = NNsight(model)

    def residual(tokens, cache):
        kept = []
        with watched.trace(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1):
            for layer in watched.model.layers:
                kept.append(layer.output.save())
        return kept

    return {"nnsight, residual": residual}


if __name__ == "__main__":
    loaded = Loaded()
    child.serve({do: getattr(loaded, do) for do in ("load", "prefill", "fill", "decode")})
