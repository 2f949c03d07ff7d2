"""Expert routing: statistics, exact table, what the page is given."""

import numpy as np
import pytest
import torch

from gptoss_workbench import views


def test_the_page_gets_experts_and_weights_of_every_token(trace, buffers_of):
    sent = buffers_of(views.experts(trace)._repr_html_())
    real = trace.mask[0]
    assert (np.moveaxis(sent["experts"], 0, -1) == trace.routing.experts[:, 0, real].numpy()).all()
    weights = trace.routing.weights[:, 0, real].numpy()
    error = np.abs(np.moveaxis(sent["weights"], 0, -1) / 255 - weights[..., :3])
    assert len(sent["weights"]) == 3 and error.max() <= 0.5 / 255 + 1e-6


def test_weights_that_an_edit_left_below_1_are_all_sent(trace, buffers_of):
    trace.routing.weights[2, 0, 20] *= 0.5
    view = views.experts(trace)
    sent = buffers_of(view._repr_html_())["weights"] / 255
    assert not view.header["implied"] and sent[:, 2, 17].sum() == pytest.approx(0.5, abs=0.01)


def test_statistics_are_those_of_the_weights_and_logits(trace):
    real = trace.mask[0]
    weights = trace.routing.weights[:, 0, real]
    logits = trace.routing.logits[:, 0, real].sort(-1, descending=True).values
    table = views.experts(trace).summary()
    entropy = -(weights * weights.log2()).sum(-1).mean(-1)
    margin = (logits[..., 3] - logits[..., 4]).mean(-1)
    assert np.allclose(table["mean top weight"], weights[..., 0].mean(-1), atol=1e-6)
    assert np.allclose(table["mean entropy"], entropy, atol=1e-5)
    assert np.allclose(table["mean margin"], margin, atol=1e-5)


def test_the_table_is_exact(trace):
    table = views.experts(trace, row=1).to_pandas()
    first = table[(table.layer == 2) & (table.position == 5)]
    assert list(first["rank"]) == [0, 1, 2, 3]
    assert list(first["expert"]) == trace.routing.experts[2, 1, 5].tolist()
    assert np.allclose(first["weight"], trace.routing.weights[2, 1, 5])


def test_layers_can_be_chosen(trace):
    view = views.experts(trace, layers=[1, 3])
    assert view.header["layers"] == [1, 3] and set(view.to_pandas()["layer"]) == {1, 3}
    with pytest.raises(ValueError, match=r"has layers \[0, 1, 2, 3\]; got layers=\[4\]"):
        views.experts(trace, layers=[4])


def test_a_trace_of_some_layers_keeps_their_numbers(trace):
    trace.layers = (4, 5, 6, 7)
    assert views.experts(trace).header["layers"] == [4, 5, 6, 7]


def test_without_logits_there_is_no_margin(trace):
    trace.routing.logits = None
    names = [s["name"] for s in views.experts(trace).header["statistics"]]
    assert names == ["top weight", "entropy", "expert chosen"]
    with pytest.raises(ValueError, match="no router logits"):
        views.experts(trace, statistic="margin")


def test_an_expert_opens_selected_and_an_impossible_one_raises(trace):
    assert views.experts(trace, expert=(2, 5)).state() == {
        "statistic": "expert chosen", "token": None, "layer": 2, "expert": 5, "zoom": 1,
    }  # fmt: skip
    with pytest.raises(ValueError, match="experts 0 to 15; got 16"):
        views.experts(trace, expert=(2, 16))
    with pytest.raises(ValueError, match=r"layers \[0, 1, 2, 3\]; got 9"):
        views.experts(trace, expert=(9, 0))


def test_a_trace_without_routing_says_how_to_get_it(trace):
    trace.routing = None
    with pytest.raises(ValueError, match="routing=True"):
        views.experts(trace)


def test_more_than_256_experts_still_fit(trace, buffers_of):
    trace.config["num_local_experts"] = 512
    trace.routing.experts[0, 0, 3, 0] = 511
    sent = buffers_of(views.experts(trace)._repr_html_())
    assert sent["experts"].dtype == np.uint16 and sent["experts"][0, 0, 0] == 511


def test_weights_in_bfloat16_are_read(trace):
    trace.routing.weights = trace.routing.weights.to(torch.bfloat16)
    assert views.experts(trace).to_pandas()["weight"].dtype == np.float32
