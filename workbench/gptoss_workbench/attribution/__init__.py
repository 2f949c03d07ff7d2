"""Which parts of the model a logit comes from."""

from .attribution_result import LogitAttribution
from .logit_attribution import logit_attribution

__all__ = ["LogitAttribution", "logit_attribution"]


def __dir__() -> list[str]:
    return sorted(__all__)
