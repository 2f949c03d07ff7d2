"""The edits of a decoded token in tensors that stay where they are, for a captured step to read.

A change of numbers is copied into them; only a change of form (another verb, site, layer or shape)
means new tensors. Which edits act on the token is settled on the host, where its position, text and
voice are known, and goes to the device with the token: nothing is read back.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from operator import is_
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from gptoss_hooks.edits import act, programs, tree
from gptoss_hooks.edits.aligned import Run
from gptoss_hooks.edits.edit import Edit
from gptoss_hooks.edits.fused import fusable
from gptoss_hooks.edits.plan import plan
from gptoss_hooks.points import EditError
from gptoss_kernels.route_edited import RouteProgram
from gptoss_workbench.edit_scope import Scope
from gptoss_workbench.fixed_cache import FixedCache

ASK = ("attn.hook_attn_scores", "attn.hook_pattern")
"""Sites behind which a kernel asks which rows were changed, so that an edit there waits for it."""
LOGITS = "blocks.{}.mlp.hook_router_logits"
"""In the midst of an edited route, which a kernel decides in one go unless somebody looks here."""


class StepEdits:
    """Holds the edits of a model while it decodes."""

    def __init__(self, model: Any, device: torch.device):
        self.model, self.device = model, device
        self.edits: Sequence[Edit] = ()
        self.host = self.held = plan((), model)
        self.wait = False
        """whether a step under these edits waits for the device, which cannot be captured"""
        self._form = tree.form(self.host)
        self._fitting: set[bytes] = set()

    def hold(self, edits: Sequence[Edit]) -> bool:
        """Take edits over; False where what was captured does not hold for them."""
        if len(edits) == len(self.edits) and all(map(is_, edits, self.edits)):
            return True
        host = plan(edits, self.model)
        form = tree.form(host)
        fits = form == self._form and len(edits) == len(self.edits)
        if fits:
            pairs = zip(tree.tensors(self.held), tree.tensors(host), strict=True)
            for held, given in {id(held): (held, given) for held, given in pairs}.values():
                held.copy_(given)
        else:
            self.held = tree.over(host, lambda tensor: tensor.to(self.device, copy=True))
        self.edits, self.host, self._form = edits, host, form
        self.wait, self._fitting = self._waits(), set()
        return fits

    def _waits(self) -> bool:
        routes, sites = self.host.routes, self.host.sites
        split = (LOGITS.format(layer) for layer, route in enumerate(routes) if route is not None)
        asked = [name for name in sites if name.endswith(ASK)]
        points = self.model.hook_dict
        inside = all(fusable(points[name], sites[name]) for name in asked)
        return not inside or any(name in sites for name in split)

    def masks(
        self, tokens: Int[Tensor, "batch 1"], positions: Int[Tensor, "batch 1"], cache: FixedCache
    ) -> list[Bool[Tensor, "batch 1"]]:
        """Where each edit acts, all on the CPU; raises EditError where one cannot."""
        if not self.edits:
            return []
        scope = Scope(self.model, tokens, positions, cache)
        masks = [scope.mask(edit) for edit in self.edits]
        self._check(Run(positions, tokens, True, masks))
        return masks

    def _check(self, run: Run) -> None:
        """Raise EditError where the edits cannot act: once for those that act together, not once a
        token, unless what was recorded for other tokens does not fit."""
        routes, sizes = self.host.routes, self.host.sizes
        acting = torch.stack(list(run.masks)).numpy().tobytes()
        if acting not in self._fitting:
            try:
                programs.programs(routes, programs.anywhere(routes, run), sizes)
                self._fitting.add(acting)
            except EditError:
                programs.programs(routes, run, sizes)
        programs.refuse_other_tokens(routes, run)

    def begin(self, run: Run, stack: ExitStack) -> Sequence[RouteProgram | None]:
        """Programs a layer for a run on the device; site edits stay on until `stack` is left."""
        act.attach(self.model, self.held.sites, run, stack)
        return programs.programs(self.held.routes, run, self.held.sizes)
