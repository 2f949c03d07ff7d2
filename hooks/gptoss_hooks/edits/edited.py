"""The part of a model that carries edits: those of a `with` block, and those of one call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from gptoss_hooks.edits.check import check
from gptoss_hooks.edits.edit import Edit


class Edited:
    """Mixin for a HookedRoot: the edits its forward pass obeys."""

    active_edits: tuple[Edit, ...] = ()
    """in the order they act"""

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
        """
        root: Any = self
        before = self.active_edits
        if edits:
            check(edits, root)
            self.active_edits = (*before, *edits)
        try:
            yield self
        finally:
            self.active_edits = before
