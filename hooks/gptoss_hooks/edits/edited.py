"""The part of a model that carries edits: those of a `with` block, and those of one call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from gptoss_hooks.edits.check import check
from gptoss_hooks.edits.edit import Edit
from gptoss_hooks.points import EditError


class Edited:
    """Mixin for a HookedRoot: the edits its forward pass obeys."""

    active_edits: tuple[Edit, ...] = ()
    """in the order they act"""

    idle: dict[int, str | None]
    """by an active edit's id: why it has acted on no token so far, None once it has"""

    text_grows: bool = False
    """whether what runs is a text still being written, so that rows have no end yet"""

    @contextmanager
    def being_written(self) -> Iterator[None]:
        """Run the block on a text that is still being written."""
        before, self.text_grows = self.text_grows, True
        try:
            yield
        finally:
            self.text_grows = before

    @contextmanager
    def edited(self, *edits: Edit) -> Iterator[Self]:
        """Run the block under edits, after those already active; leaving it, they are gone.

        with model.edited(ban(3, layers=2), steer("resid_post", v, layers=1)): model(prompt)

        Raises EditError for an edit that cannot act: at once where the model shows it, at the end
        where none of the block's texts has a token that `tokens=` or `channels=` mean.
        """
        root: Any = self
        before = self.active_edits
        if not before:
            self.idle = {}
        if edits:
            check(edits, root)
            self.active_edits = (*before, *edits)
        try:
            yield self
        finally:
            self.active_edits = before
            idle = [(edit, self.idle.pop(id(edit), None)) for edit in edits]
        for edit, why in idle:
            if why is not None:
                raise EditError(f"{edit}: acted on no token; {why}")
