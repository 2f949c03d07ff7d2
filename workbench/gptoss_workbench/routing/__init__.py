"""Which experts a corpus goes to, what that means, and how sure one can be."""

from .collect import trace_routing
from .contrast import detection_and_control, expert_contrast, stable_experts
from .load import load_balance
from .record import Record
from .saliency import expert_saliency, saliency_cut
from .specialisation import specialisation, specialisation_baseline
from .super_experts import super_experts
from .trace import RoutingTrace

__all__ = [
    "Record",
    "RoutingTrace",
    "detection_and_control",
    "expert_contrast",
    "expert_saliency",
    "load_balance",
    "saliency_cut",
    "specialisation",
    "specialisation_baseline",
    "stable_experts",
    "super_experts",
    "trace_routing",
]
