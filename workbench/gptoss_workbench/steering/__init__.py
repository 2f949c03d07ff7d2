"""Directions in activations, and what adding them or taking them out does.

from gptoss_workbench.steering import difference_of_means, steering_effect
"""

from gptoss_workbench.steering.directions import Directions, difference_of_means
from gptoss_workbench.steering.effect import steering_effect

__all__ = ["Directions", "difference_of_means", "steering_effect"]


def __dir__() -> list[str]:
    return sorted(__all__)
