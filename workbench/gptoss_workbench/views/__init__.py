"""Pictures of a trace one can point at. Each is one self-contained piece of HTML; see `View`."""

from .attention import attention
from .experts import experts
from .lens import lens
from .page import page, trace_page
from .patching import patching
from .snapshot import View
from .tokens import tokens

__all__ = ["View", "attention", "experts", "lens", "page", "patching", "tokens", "trace_page"]


def __dir__() -> list[str]:
    return sorted(__all__)
