"""What a trace did not keep is had by running its prompts again, aligned with its records."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from gptoss_workbench.routing import hidden_states, specialisation_baseline, trace_routing


def test_hidden_states_are_the_model_s_in_the_order_of_the_record(small):
    rows = [[5, 6, 7, 8, 9], [9, 10, 11], [12] * 6, [4]]
    routing = trace_routing(small, rows, progress=False, shard_tokens=8, batch_tokens=12)
    found = hidden_states(small, routing, point="hook_resid_mid", layers=[1])
    record = routing.record()
    assert list(found) == [1] and found[1].dtype == np.float32
    for number, row in enumerate(rows):
        _, cache = small.run_with_cache(torch.tensor([row]))
        mine = found[1][record.prompt == number]
        np.testing.assert_allclose(mine, cache["resid_mid", 1][0], rtol=1e-4, atol=1e-4)
    some = routing.where(token=[9, 12])
    part = hidden_states(small, some, point="hook_resid_mid", layers=[1])
    assert (part[1] == found[1][np.isin(record.token, [9, 12])]).all()


def test_parts_of_prompts_are_refused(small, by_hand):
    routing = by_hand(np.zeros((4, 2, 1)), n_experts=2, prompt=[0, 0, 1, 1])
    with pytest.raises(ValueError, match="from its first token on"):
        hidden_states(small, routing)


def test_on_nano_the_language_is_in_the_hidden_state_whether_or_not_experts_follow_it(
    nano, taught, planted
):
    """The baseline of a claim: layer 1's experts tell little, though the state knows."""
    part = replace(taught, keep=(*taught.keep, lambda r: r.prompt < 12))
    hidden = hidden_states(nano, part, layers=[1, planted.layer])
    table = specialisation_baseline(part, hidden, most=500, folds=3)
    read = table.where(layer=planted.layer)
    assert (read["accuracy"] > 0.9).all()
    states, experts = (table.where(layer=1, **{"read from": of}) for of in ("hidden", "experts"))
    assert states["accuracy"][0] > experts["accuracy"][0] + 0.1
