"""Super experts: the one expert that was made loud is flagged, and no other."""

import numpy as np
import pytest
import torch

from gptoss_workbench.model import GptOss
from gptoss_workbench.routing.super_experts import super_experts

LOUD = 64
"""MXFP4 scales are powers of two: 64 is the nearest to 50 that all of an expert can be given."""


@pytest.fixture
def peaks(by_hand):
    """Eight layers of two experts; only layer 1's expert 0 is large."""
    values = np.full((4, 8, 2), 0.5, np.float32)
    values[2, 1, 0] = 9
    return by_hand(np.tile([0, 1], (4, 8, 1)), n_experts=2, peaks=values)


def flagged(table):
    rows = table.rows(table["is_super"])
    return list(zip(rows["layer"].tolist(), rows["expert"].tolist(), strict=True))


def test_the_largest_early_expert_is_super(peaks):
    table = super_experts(peaks)
    assert flagged(table) == [(1, 0)]
    assert table["peak"][0] == 9 and table["times_median"][0] == 18


def test_the_script_divides_with_a_floor(peaks):
    """With a maximum of 9 its threshold is 0."""
    assert "and 0 (max // 10, as the script)" in super_experts(peaks, script_compat=True).notes[0]
    assert "and 0.9 (max / 10)" in super_experts(peaks).notes[0]


def test_late_layers_hold_none(peaks):
    record = peaks.record()
    late = np.flip(record.peaks, 1).copy()
    from gptoss_workbench.routing import RoutingTrace

    assert (
        flagged(super_experts(RoutingTrace.from_record(record._replace(peaks=late), n_experts=2)))
        == []
    )


def test_a_loud_expert_of_nano_is_the_one_flagged(nano32, texts_of, routing_of):
    texts, _ = texts_of(n=2)
    quiet = super_experts(routing_of(nano32, texts))
    used = quiet.where(layer=1).sort("n", descending=True)
    target = int(used["expert"][-1] if used["n"][-1] > 20 else used["expert"][0])
    tensors = dict(nano32.checkpoint_tensors())
    name = "model.layers.1.mlp.experts.down_proj"
    for part, change in (("scales", lambda x: x + 6), ("bias", lambda x: x * LOUD)):
        tensor = tensors[f"{name}_{part}"].clone()
        tensor[target] = change(tensor[target])
        tensors[f"{name}_{part}"] = tensor
    loud = GptOss(nano32.config, tensors, dtype=torch.float32, tokenizer=nano32.tokenizer)
    found = super_experts(routing_of(loud, texts))
    assert flagged(found) == [(1, target)]
    assert found["times_median"][0] > 4 * quiet["times_median"][0]


def test_without_peaks_it_says_how_to_trace_them(by_hand):
    with pytest.raises(ValueError, match=r"keep=\('peaks',\)"):
        super_experts(by_hand([[[0]]] * 3, n_experts=2))
