"""Which experts a corpus goes to, what that means, and how sure one can be."""

from .coactivation import coactivation, coactivation_matrix
from .collect import trace_routing
from .committee import committee
from .contrast import detection_and_control, expert_contrast, stable_experts
from .counterfactual import counterfactual_routes
from .divergence import divergence
from .expert_lens import expert_lens, expert_mix_cosine, loss_by_k
from .feature_routing import expert_cards, feature_routing
from .gate_rank import gate_norm_rank
from .load import load_balance
from .paths import expert_flow, expert_paths
from .record import Record
from .rerun import hidden_states, predicted_tokens
from .router_space import RouterSpace, control_energy, router_space, router_spectrum
from .saliency import expert_saliency, saliency_cut
from .saturation import saturation, saturation_sweep
from .signature import signature_classifier, signatures
from .specialisation import specialisation, specialisation_baseline
from .super_experts import super_experts
from .token_pmi import gate_multiplier, token_pmi
from .trace import RoutingTrace
from .vocabulary import vocabulary_specialisation
from .weights import expert_cosine, gate_cosine

__all__ = [
    "Record",
    "RouterSpace",
    "RoutingTrace",
    "coactivation",
    "coactivation_matrix",
    "committee",
    "control_energy",
    "counterfactual_routes",
    "detection_and_control",
    "divergence",
    "expert_cards",
    "expert_contrast",
    "expert_cosine",
    "expert_flow",
    "expert_lens",
    "expert_mix_cosine",
    "expert_paths",
    "expert_saliency",
    "feature_routing",
    "gate_cosine",
    "gate_multiplier",
    "gate_norm_rank",
    "hidden_states",
    "load_balance",
    "loss_by_k",
    "predicted_tokens",
    "router_space",
    "router_spectrum",
    "saliency_cut",
    "saturation",
    "saturation_sweep",
    "signature_classifier",
    "signatures",
    "specialisation",
    "specialisation_baseline",
    "stable_experts",
    "super_experts",
    "token_pmi",
    "trace_routing",
    "vocabulary_specialisation",
]


def __dir__() -> list[str]:
    return sorted(__all__)
