"""Which experts a corpus goes to, what that means, and how sure one can be."""

from .collect import trace_routing
from .contrast import detection_and_control, expert_contrast, stable_experts
from .record import Record
from .saliency import expert_saliency, saliency_cut
from .super_experts import super_experts
from .trace import RoutingTrace

__all__ = [
    "Record",
    "RoutingTrace",
    "detection_and_control",
    "expert_contrast",
    "expert_saliency",
    "saliency_cut",
    "stable_experts",
    "super_experts",
    "trace_routing",
]
