"""Which positions of a run are kept."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class PositionSlice:
    """A TransformerLens position slice (int, tuple, slice, list or their Slice), by axis name."""

    def __init__(self, given: Any = None):
        given = getattr(given, "slice", given)
        self.given = slice(*given) if isinstance(given, tuple) else given

    def __call__(self, tensor: Tensor, axes: Sequence[str]) -> Tensor:
        """Slice the position (or query) axis, if the tensor has one."""
        axis = next((i for i, name in enumerate(axes) if name in ("pos", "query")), None)
        if self.given is None or axis is None:
            return tensor
        return tensor[(slice(None),) * axis + (self.given,)]

    def refuse_padding(self, mask: Tensor | None) -> None:
        """Raise where a row's padding changes which of its own tokens are selected.

        Args:
            mask: [batch, pos] False on padding.
        """
        if self.given is None or mask is None or mask.all():
            return
        for row, real in enumerate(mask.cpu()):
            own, columns = real.nonzero()[:, 0], torch.arange(len(real))
            chosen = _chosen(columns, self.given)
            meant = _chosen(own, self.given)
            if chosen is None or (meant is not None and torch.equal(chosen[real[chosen]], meant)):
                continue
            raise ValueError(
                f"pos_slice={self.given} counts padding: row {row} has {len(own)} tokens in "
                f"{len(real)} places, so it is not the same token of every row. Pad on the left "
                "(padding_side='left') to count from the end, on the right from the start, or "
                "run the rows one by one."
            )

    def length(self, size: int) -> int:
        """How many of `size` positions are kept."""
        if self.given is None:
            return size
        if isinstance(self.given, int):
            return 1
        if isinstance(self.given, slice):
            return len(range(*self.given.indices(size)))
        return len(self.given)


def _chosen(places: Tensor, given: Any) -> Tensor | None:
    """The places [chosen] that a position slice picks; None where it reaches beyond them."""
    try:
        return places[given].reshape(-1)
    except IndexError:
        return None
