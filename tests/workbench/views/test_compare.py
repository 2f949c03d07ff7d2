"""Two runs compared: which experts changed at the tokens both hold, and the size of a snapshot."""

import dataclasses

import numpy as np
import pytest
import torch

from gptoss_workbench import views
from gptoss_workbench.table import Table
from gptoss_workbench.trace import Routing, Trace


@pytest.fixture(autouse=True)
def no_picture(request, monkeypatch):
    """Still pictures take seconds; the size is measured with it."""
    if "kilobytes" not in request.node.name:
        monkeypatch.setattr(views.View, "_picture", lambda self: "<img>")


@pytest.fixture
def whole(trace):
    """The hand-made trace as a real one, without activations."""
    facts = {f.name: getattr(trace, f.name) for f in dataclasses.fields(Trace) if f.name != "axes"}
    routing = Routing(trace.routing.experts, trace.routing.weights, trace.routing.logits)
    return Trace(**(facts | {"routing": routing, "activations": {}}))


def swapped(trace, layer, token):
    """The same run, but one token's best expert in one layer is another."""
    experts = trace.routing.experts.clone()
    here = experts[layer, 0, token]
    here[0] = next(e for e in range(16) if e not in here.tolist())
    return dataclasses.replace(trace, routing=trace.routing._replace(experts=experts))


def test_one_changed_expert_is_seen_where_it_changed_and_nowhere_else(whole, buffers_of):
    other = swapped(whole, 2, 20)
    view = views.experts(whole, other=other)
    table = view.to_pandas()
    changed = table[table["experts changed"] > 0]
    assert set(changed["layer"]) == {2} and set(changed["position"]) == {20}
    assert set(changed["experts changed"]) == {1}
    sent = buffers_of(view._repr_html_())
    assert np.argwhere(sent["other"]).tolist() == [[0, 2, 17]]
    there = sent["experts"] ^ sent["other"]
    assert there[0, 2, 17] == other.routing.experts[2, 0, 20, 0]
    assert view.state()["statistic"] == "experts changed"
    assert "most in layer 2" in view.finding and "59 tokens in both" in view.finding


def test_a_run_compared_with_itself_shows_no_change(whole):
    view = views.experts(whole, other=whole)
    assert view.to_pandas()["experts changed"].eq(0).all() and "0.00 of 4" in view.finding


def test_tokens_that_only_one_run_holds_are_blank_and_counted(whole, buffers_of):
    other = whole.select(pos=slice(0, 40))
    view = views.experts(whole, other=other)
    assert view.header["compared"] == {"both": 37, "here": 22, "there": 0}
    assert buffers_of(view._repr_html_())["paired"].tolist() == [1] * 37 + [0] * 22
    assert view.to_pandas()["experts changed"].isna().sum() == 22 * 4 * 4


def test_runs_that_cannot_be_compared_say_why(whole):
    with pytest.raises(ValueError, match=r"other has layers \[0, 1\], not \[2, 3\]"):
        views.experts(whole, other=whole.select(layers=[0, 1]))
    with pytest.raises(ValueError, match="needs other="):
        views.experts(whole, statistic="experts changed")
    with pytest.raises(ValueError, match="no token in common"):
        views.experts(whole, other=dataclasses.replace(whole, tokens=whole.tokens + 5000))


def test_what_experts_write_comes_from_a_table_or_a_mapping(whole):
    table = Table({"layer": [2, 2, 3], "expert": [5, 5, 1], "token": ["a", "b", "c"]}, "", "")
    assert views.experts(whole, lens=table).header["lens"] == {"2:5": ["a", "b"], "3:1": ["c"]}
    often = Table(
        {"layer": [2] * 3, "expert": [5] * 3, "token": [1, 2, 2], "string": ["a", "b", "b"]}, "", ""
    )
    assert views.experts(whole, lens=often).header["lens"] == {"2:5": ["b", "a"]}
    assert views.experts(whole, lens={(2, 5): ["x"]}).header["lens"] == {"2:5": ["x"]}
    with pytest.raises(ValueError, match="it lacks token"):
        views.experts(whole, lens=Table({"layer": [1], "expert": [1]}, "", ""))


def test_24_layers_of_2000_tokens_take_less_than_600_kilobytes(whole):
    """Random routing, the hardest to compress, with margins; picture and script included."""
    n, generator = 2000, torch.Generator().manual_seed(0)
    logits = 1.5 * torch.randn(24, 1, n, 32, generator=generator)
    top = logits.topk(4)
    words = ["alpha", " is", " seven", " so", " plus", " therefore"]
    long = Trace(
        tokens=torch.arange(n)[None],
        mask=torch.ones(1, n, dtype=torch.bool),
        strings=[[words[i % 6] for i in range(n)]],
        routing=Routing(top.indices.short(), top.values.softmax(-1), logits),
        layers=tuple(range(24)),
        config={"num_local_experts": 32},
    )
    assert len(views.experts(long).fragment().encode()) <= 600_000
