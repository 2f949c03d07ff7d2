"""Which experts a corpus goes to, what that means, and how sure one can be."""

from .record import Record
from .trace import RoutingTrace

__all__ = ["Record", "RoutingTrace"]
