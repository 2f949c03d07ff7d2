"""Lenses: what the residual stream would say at every layer."""

from .lens_result import LensResult
from .logit_lens import logit_lens
from .readout import Readout, readout
from .train_lens import train_tuned_lens
from .tuned_lens import TunedLens

__all__ = ["LensResult", "Readout", "TunedLens", "logit_lens", "readout", "train_tuned_lens"]


def __dir__() -> list[str]:
    return sorted(__all__)
