"""Decoding a token at a time at fixed addresses, on a GPU as a replayed CUDA graph.

At batch 1 a token of the 20b is 600 kernels and a millisecond of memory traffic; started one by one
from Python they take several. Captured once, they are started together. A graph cannot call
Python, so a model that a function of somebody's observes is decoded without one. Edits are tensors
that the captured kernels read, and stay, but for those that `StepEdits.wait`.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gptoss_hooks.edits import tree
from gptoss_hooks.edits.aligned import Run
from gptoss_hooks.points import HookPoint
from gptoss_kernels import rope
from gptoss_workbench.cuda_graph import capture
from gptoss_workbench.fixed_cache import FixedCache
from gptoss_workbench.kv_cache import PAD, KVCache
from gptoss_workbench.step_edits import StepEdits


def worthwhile(model: Any) -> bool:
    """Whether steps of this model can be captured."""
    return torch.device(model.cfg.device).type == "cuda" and model.backend == "triton"


def watched(modules: Iterable[nn.Module]) -> bool:
    """Whether any of a model's modules would call a function of somebody's.

    Asked before every token of a thousand modules, so it looks into their dictionaries.
    """
    for module in modules:
        own = module.__dict__
        if own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"]:
            return True
        if own.get("_forward_functions") or own.get("_backward_functions"):
            return True
        if "__nnsight__" in own and isinstance(module, HookPoint) and module.observed:
            return True
    return False


def addresses(model: nn.Module) -> list[int]:
    """Where the weights of a model lie, which a captured step takes for granted."""
    return [each.data_ptr() for each in (*model.parameters(), *model.buffers())]


class Decoder:
    """Runs one token a row after what `cache` holds; both are filled in place."""

    def __init__(self, model: Any, cache: KVCache, *, room: int):
        self.model: Any = model
        self.modules = list(model.modules())
        self.weights = addresses(model)
        self.cache = FixedCache(cache, model.config, room=room)
        assert self.cache.lengths is not None
        self.device = self.cache.lengths.device
        self.edits = StepEdits(model, self.device)
        self.given = torch.empty(0, dtype=torch.long, device=self.device)
        """[2 + edit, batch]: the tokens, which rows go on, where each edit acts"""
        self.logits = torch.empty(0)
        self.again: Callable[[], None] | None = None
        """does what was captured once more"""

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and edits."""
        return self.cache.nbytes + sum(t.nbytes for t in tree.tensors(self.edits.held))

    def rest(self) -> None:
        """Let go of the model, which may keep this for its next text, until `resumes`."""
        self.model, self.modules, self.edits.model = None, [], None
        self.cache.history = []

    def resumes(self, model: Any, rows: int, room: int) -> bool:
        """Go on for a model with another text of so many rows and tokens, once `cache` holds it.

        False where it has no room, or the model no longer lies where it lay.
        """
        frozen = self.given.is_inference() and not torch.is_inference_mode_enabled()
        if frozen or addresses(model) != self.weights or not self.cache.fits(rows, room):
            return False
        self.model, self.modules, self.edits.model = model, list(model.modules()), model
        return True

    def next_logits(
        self, tokens: Int[Tensor, "batch 1"], mask: Bool[Tensor, "batch 1"]
    ) -> Float[Tensor, "batch vocab"]:
        """`step`, or where it cannot be captured an ordinary pass, with the same bits."""
        self._hold()
        if self.edits.wait or watched(self.modules):
            options = {"past_key_values": self.cache, "logits_to_keep": 1}
            return self.model(tokens, attention_mask=mask, **options)[:, -1]
        return self.step(tokens, mask)

    @torch.no_grad()
    def step(
        self, tokens: Int[Tensor, "batch 1"], mask: Bool[Tensor, "batch 1"]
    ) -> Float[Tensor, "batch vocab"]:
        """Logits after one more token a row, under the model's edits; a row whose mask is False
        stands still.

        The result is overwritten by the next step.
        """
        self._hold()
        tokens, mask, cache = tokens.cpu(), mask.cpu(), self.cache
        cache.make_room(1)
        masks = self.edits.masks(tokens, cache.known_positions(mask), cache)
        given = torch.stack([each[:, 0].long() for each in (tokens, mask, *masks)])
        if given.shape != self.given.shape:
            self.given, self.again = given.to(self.device, copy=True), None
        else:
            self.given.copy_(given)
        if self.again is None:
            assert cache.lengths is not None
            counters = [cache.lengths, *(place.next for place in cache.places.values())]
            self.again = capture(self._run, counters)
        self.again()
        cache.advance(mask, tokens, counted=True)
        return self.logits

    def _hold(self) -> None:
        if not self.edits.hold(self.model.active_edits):
            self.again = None

    def _run(self) -> None:
        """The work of one step: reads and writes the tensors of this object, nothing else."""
        model, cache, tokens = self.model, self.cache, self.given[0][:, None]
        on, *masks = self.given[1:, :, None].bool()
        assert cache.lengths is not None
        positions = torch.where(on, cache.lengths[:, None], PAD)
        with ExitStack() as leaving:
            run = Run(positions, tokens, True, masks, checked=True)
            programs = self.edits.begin(run, leaving)
            turn = rope.tables(positions, model.frequencies)
            x = model.hook_embed(model.embed(tokens))
            for layer, block in enumerate(model.blocks):
                program = programs[layer] if programs else None
                x = block(x, turn, positions, cache, program)
            self.logits = model.unembed(model.ln_final(x))[:, -1]
        cache.count(on)
