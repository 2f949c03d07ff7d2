"""This project as a contestant: the model over mapped weights, with and without observers."""

import time
from collections.abc import Sequence
from dataclasses import replace

import child
import limits
import numpy as np
import torch
from observing import is_common

import gptoss_workbench as wb
from gptoss_kernels import backend
from gptoss_workbench.checkpoint import open_checkpoint
from gptoss_workbench.config import alternating_layers

KEEP = {"hooks off": (), "residual + routing": (is_common,), "everything": (None,)}
"""Each variant's filter for `run_with_cache`; "everything" is what that keeps without one."""


class Ours:
    """One loaded model and the caches of the context being continued."""

    multiplied: limits.Products | None = None

    def load(self, path: str) -> dict:
        """Seconds that `load()` takes, and what was loaded."""
        started = time.perf_counter()
        self.model = wb.load(path)
        return {"seconds": time.perf_counter() - started, **self.about()}

    def about(self) -> dict:
        """The model, and what it runs on."""
        name = self.model.backend
        words = f"{self.model!r} {backend.instruction_set(name) or ''}".rstrip()
        return {"about": words, "backend": name}

    def first_token(self, path: str, tokens: list[int]) -> dict:
        """Seconds from `load()` to a loaded model, and to the first token after a prompt."""
        started = time.perf_counter()
        loaded = self.load(path)["seconds"]
        self.run(tokens, None, "hooks off")
        return {"load": loaded, "first token": time.perf_counter() - started}

    def cut(self, path: str, layers: int) -> dict:
        """Load the first layers alone, for rivals that do not fit whole."""
        opened = open_checkpoint(path)
        config = replace(
            opened.config, num_hidden_layers=layers, layer_types=alternating_layers(layers)
        )
        self.model = wb.GptOss(config, opened.tensors(), name=f"first {layers} layers")
        return self.about()

    def prefill(self, tokens: list[int], threads: int, variant: str, body: bool = False) -> float:
        """Seconds until the logits of a prompt's last token, its cache filled."""
        torch.set_num_threads(threads)
        started = time.perf_counter()
        self.run(tokens, self.model.new_cache(len(tokens)), variant, body)
        return time.perf_counter() - started

    def fill(self, tokens: list[int], threads: int, room: int, variants: list[str]) -> None:
        """Begin a context that `decode` continues; each variant has a cache of its own."""
        torch.set_num_threads(threads)
        self.caches = {variant: self.model.new_cache(room) for variant in variants}
        for cache in self.caches.values():
            self.run(tokens, cache, "hooks off")

    def decode(self, tokens: list[int], variant: str, body: bool = False) -> float:
        """Seconds for tokens, one at a time."""
        started = time.perf_counter()
        for token in tokens:
            self.run([token], self.caches[variant], variant, body)
        return time.perf_counter() - started

    def logits(self, tokens: list[int], file: str) -> None:
        """Logits of every position [pos, vocab] as float32, written to `file`."""
        with torch.no_grad():
            np.save(file, self.model(torch.tensor([tokens]))[0].float().numpy())

    def read(self, threads: int) -> float:
        """Bytes a second that this many threads read from the mapped experts."""
        parts = [block.mlp.gate_up_proj_blocks for block in self.model.blocks]
        return limits.read_rate(parts, threads)

    def products(self, threads: int, tokens: int) -> dict[str, float]:
        """Operations a second of one expert layer and of torch's matrix products."""
        torch.set_num_threads(threads)
        if self.multiplied is None or self.multiplied.tokens != tokens:
            self.multiplied = limits.Products(self.model.blocks[0].mlp, tokens)
        return self.multiplied.rates()

    def run(self, tokens: Sequence[int], cache, variant: str, body: bool = False) -> None:
        """One pass; `body` leaves the unembedding out."""
        batch, keep = torch.tensor([tokens]), KEEP[variant]
        how = {"past_key_values": cache, "logits_to_keep": 1}
        if body:
            how["stop_at_layer"] = self.model.n_layers
        with torch.no_grad():
            if keep:
                self.model.run_with_cache(batch, names_filter=keep[0], **how)
            else:
                self.model(batch, **how)


if __name__ == "__main__":
    ours = Ours()
    tasks = "load first_token cut prefill fill decode logits read products"
    child.serve({do: getattr(ours, do) for do in tasks.split()})
