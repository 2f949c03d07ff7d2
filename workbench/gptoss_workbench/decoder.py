"""Decoding a token at a time at fixed addresses, on a GPU as a replayed CUDA graph.

At batch 1 a token of the 20b is 600 kernels and a millisecond of memory traffic; started one by one
from Python they take several. Captured once, they are started together. A graph cannot call
Python, so a model somebody observes is decoded without one; routing edits are tensors that the
captured kernels read, and stay.
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gptoss_hooks.edits.routing import RoutingEdit
from gptoss_hooks.points import HookPoint
from gptoss_kernels import rope
from gptoss_kernels.route_edited import RouteProgram
from gptoss_workbench import edit_scope
from gptoss_workbench.fixed_cache import FixedCache
from gptoss_workbench.kv_cache import PAD, KVCache

Programs = Sequence[RouteProgram | None]


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


class Decoder:
    """Runs one token a row after what `cache` holds; both are filled in place."""

    def __init__(self, model: Any, cache: KVCache, *, room: int):
        self.model, self.modules = model, list(model.modules())
        self.cache = FixedCache(cache, model.config, room=room)
        assert self.cache.lengths is not None
        rows, device = len(self.cache.lengths), self.cache.lengths.device
        self.tokens = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.mask = torch.ones(rows, 1, dtype=torch.bool, device=device)
        self.programs: Programs = ()
        self.logits = torch.empty(0)
        self.graph: torch.cuda.CUDAGraph | None = None

    def next_logits(
        self, tokens: Int[Tensor, "batch 1"], mask: Bool[Tensor, "batch 1"]
    ) -> Float[Tensor, "batch vocab"]:
        """`step` under the model's active edits; where Python is to be called, an ordinary pass."""
        model, cache = self.model, self.cache
        as_data = all(isinstance(edit, RoutingEdit) for edit in model.active_edits)
        if not as_data or watched(self.modules):
            options = {"past_key_values": cache, "logits_to_keep": 1}
            return model(tokens, attention_mask=mask, **options)[:, -1]
        with ExitStack() as leaving:
            positions = cache.positions(mask)
            programs = edit_scope.begin(model, tokens, positions, cache, leaving)
            return self.step(tokens, mask, programs)

    @torch.no_grad()
    def step(
        self,
        tokens: Int[Tensor, "batch 1"],
        mask: Bool[Tensor, "batch 1"],
        programs: Programs = (),
    ) -> Float[Tensor, "batch vocab"]:
        """Logits after one more token a row; a row whose mask is False stands still.

        The result is overwritten by the next step.
        """
        self.cache.make_room(1)
        self.tokens.copy_(tokens)
        self.mask.copy_(mask)
        if not self._hold(programs):
            self.graph = None
        if self.tokens.device.type == "cuda":
            with torch.cuda.device(self.tokens.device):
                self._replay()
        else:
            self._run()
        self.cache.advance(mask, tokens, counted=True)
        return self.logits

    def _run(self) -> None:
        """The work of one step: reads and writes the tensors of this object, nothing else."""
        model, cache = self.model, self.cache
        assert cache.lengths is not None
        positions = torch.where(self.mask, cache.lengths[:, None], PAD)
        turn = rope.tables(positions, model.frequencies)
        x = model.embed(self.tokens)
        for layer, block in enumerate(model.blocks):
            program = self.programs[layer] if self.programs else None
            x = block(x, turn, positions, cache, program)
        self.logits = model.unembed(model.ln_final(x))[:, -1]
        cache.count(self.mask)

    def _replay(self) -> None:
        if self.graph is None:
            self.graph = self._captured()
        self.graph.replay()

    def _captured(self) -> torch.cuda.CUDAGraph:
        """Run once, so that kernels are compiled and loaded; then record, which runs nothing."""
        assert self.cache.lengths is not None
        counters = [self.cache.lengths, *(place.next for place in self.cache.places.values())]
        before = [counter.clone() for counter in counters]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            self._run()
        for counter, value in zip(counters, before, strict=True):
            counter.copy_(value)
        return graph

    def _hold(self, programs: Programs) -> bool:
        """Copy programs to where a captured step reads them; False where their form is new."""
        old = [each for program in self.programs for each in program or ()]
        new = [each for program in programs for each in program or ()]
        if _form(self.programs) != _form(programs):
            self.programs = tuple(
                None if program is None else RouteProgram(*map(_own, program))
                for program in programs
            )
            return False
        for held, given in zip(old, new, strict=True):
            if isinstance(held, Tensor) and isinstance(given, Tensor):
                held.copy_(given)
        return True


def _own(part: Any) -> Any:
    return part.clone() if isinstance(part, Tensor) else part


def _form(programs: Programs) -> list:
    """What a captured step takes for granted: which layers, how many steps, which width."""
    return [
        program and [part.shape if isinstance(part, Tensor) else part for part in program]
        for program in programs
    ]
