"""On gpt-oss-nano the place that holds a value is known: patching finds it, and nothing else."""

import numpy as np
import pytest

from gptoss_workbench.patching import activation_patching


def test_the_corrupted_digit_restores_the_answer_and_a_distractor_does_not(
    nano32, corrupted_definition
):
    clean, corrupted, metric, place, distractor = corrupted_definition
    found = activation_patching(nano32, clean, corrupted, metric=metric, sites="resid_pre")
    assert found.clean[0] > 2 and found.corrupted[0] < -2
    effect = found.grid().values  # [layer, pos]
    assert effect[0, place] == pytest.approx(1, abs=1e-4)
    assert np.abs(np.delete(effect[0], place)).max() < 1e-4
    assert np.abs(effect[:, list(distractor)]).max() < 0.1
    assert effect[:, :place].max() < 1e-4 and effect[-1, -1] > 0.5
