"""Live views: what is sent and asked for, `selected` both ways, the way back to a snapshot."""

import json

import numpy as np
import pytest
from traitlets import TraitError

from gptoss_workbench import views
from gptoss_workbench.views import packing


def read(raw, layout):
    """Read arrays as the page does."""
    return {
        b["name"]: np.frombuffer(raw, b["dtype"], b["length"], b["offset"]).reshape(b["shape"])
        for b in layout
    }


def arrays(live):
    """Read the arrays a live view sends."""
    return read(live.payload, json.loads(live.header)["buffers"])


def asked(live, sent, **ask):
    """Ask as the page does: what is answered, and its arrays."""
    live._asked(live, {"ask": ask}, [])
    content, (raw,) = sent.pop()
    return content, read(raw, content["part"]["buffers"])


def head_of(trace, head):
    return trace.activations["blocks.3.attn.hook_pattern"][0, head].numpy()


@pytest.fixture(autouse=True)
def no_picture(monkeypatch):
    """Still pictures take seconds and are tested elsewhere."""
    monkeypatch.setattr(views.View, "_picture", lambda self: "<img>")


@pytest.fixture
def sent(monkeypatch):
    """Messages that a live view sends to the page: (content, buffers)."""
    from gptoss_workbench.views.live import Live

    out = []
    monkeypatch.setattr(
        Live, "send", lambda self, content, buffers=None: out.append((content, buffers))
    )
    return out


def test_attention_sends_the_head_shown_and_answers_for_the_others(long_trace, sent):
    live = views.attention(long_trace, layer=3, head=2).live()
    n = len(json.loads(live.header)["tokens"]["id"])
    half = n * (n + 1) // 2
    assert json.loads(live.header)["heads"] == list(range(8))
    assert json.loads(live.header)["sent"] == [2] and arrays(live)["weights"].size == half
    assert len(live.payload) < half + 46 * 46 + n + 64
    (content, weights), pattern = asked(live, sent, heads=[6], weights=True), head_of(long_trace, 6)
    assert content["answer"] == {"heads": [6], "weights": True} and content["part"]["sent"] == [6]
    expected = packing.quantise(pattern[np.tri(n, dtype=bool)], root=True)
    assert (weights["weights"] == expected).all()


def test_a_face_comes_with_the_weights_or_alone(long_trace, sent):
    whole = views.attention(long_trace, layer=3, head=5, heads=[5])
    live = views.attention(long_trace, layer=3, head=2).live()
    for weights in (True, False):
        content, got = asked(live, sent, heads=[5], weights=weights)
        assert content["part"]["known"] == [5] and bool(got["weights"].size) == weights
        assert (got["lead"] == whole.buffers["lead"]).all()
        assert (got["thumbs"] == whole.buffers["thumbs"]).all()
        assert content["part"]["entropy"] == whole.header["entropy"]


def test_several_heads_come_as_they_would_alone(long_trace, sent):
    live = views.attention(long_trace, layer=3, head=2).live()
    content, got = asked(live, sent, heads=[5, 0, 7], weights=True)
    assert content["part"]["known"] == content["part"]["sent"] == [5, 0, 7]
    alone = [asked(live, sent, heads=[head], weights=True)[1] for head in (5, 0, 7)]
    for name, axis in {"weights": 0, "lead": 1, "thumbs": 0}.items():
        assert (got[name] == np.concatenate([each[name] for each in alone], axis)).all()


def test_each_head_is_measured_once(long_trace, sent, monkeypatch):
    from gptoss_workbench.views import pattern

    measured, read = [], pattern.read_face
    monkeypatch.setattr(
        pattern, "read_face", lambda p, head: measured.append(head) or read(p, head)
    )
    live = views.attention(long_trace, layer=3, heads=[2, 6], head=2).live()
    for head in (6, 2, 6):
        asked(live, sent, heads=[head], weights=True)
    assert sorted(measured) == [2, 6]


def test_64_heads_of_512_tokens_open_with_one_of_them(wide_trace):
    live = views.attention(wide_trace, layer=2, head=63).live()
    assert json.loads(live.header)["leftOut"] == 0 and len(live.payload) < 140_000
    assert len(json.loads(live.header)["heads"]) == 64
    assert len(live.header) < 40_000 and len(live._esm) < 60_000


def test_other_views_send_what_the_snapshot_carries(trace):
    live = views.experts(trace).live()
    for name, array in views.experts(trace).buffers.items():
        assert (arrays(live)[name] == array).all()
    assert "https:" not in live._esm and "import " not in live._esm.replace("important", "")
    assert live._esm.rstrip().endswith("export default { render: attach };")


def test_selected_is_set_in_python_and_what_is_left_out_stays(trace):
    live = views.attention(trace, layer=2, head=5).live()
    assert live.selected == {"head": 5, "query": None, "sort": "number", "zoom": 1}
    live.selected = {"query": 7}
    live.selected = {"head": 3}
    assert live.state() == {"head": 3, "query": 7, "sort": "number", "zoom": 1}
    seen = []
    live.observe(lambda change: seen.append(change["new"]["query"]), "selected")
    live.set_state({"selected": {**live.selected, "query": 9}})  # as the page does
    assert seen == [9]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"query": 999}, "there are 59 tokens"),
        ({"head": 8}, "heads are 0 to 7"),
        ({"x": 1}, "got x"),
    ],
)
def test_a_selection_that_is_not_there_raises_and_changes_nothing(trace, given, said):
    live = views.attention(trace, layer=2).live()
    with pytest.raises((ValueError, TraitError), match=said):
        live.selected = given
    assert live.selected["head"] == 0 and live.selected["query"] is None


def test_the_snapshot_of_a_live_view_opens_where_it_stands(trace):
    live = views.experts(trace).live()
    live.selected = {"layer": 2, "expert": 5, "statistic": "expert chosen", "token": 8}
    view = live.snapshot()
    assert view.state() == live.state() and view.kind == "experts"
    again = views.experts(trace, state=live.state())
    assert view.header == again.header and view.buffers.keys() == again.buffers.keys()


def test_a_head_beyond_the_budget_is_in_the_snapshot_it_is_frozen_into(long_trace):
    view = views.attention(long_trace, layer=3, budget=1_000_000)
    assert 7 not in view.header["heads"]
    live = view.live()
    live.selected = {"head": 7}
    assert 7 in live.snapshot().header["heads"]


def test_freeze_puts_the_snapshot_in_the_place_of_the_widget(trace, outputs):
    live = views.experts(trace).live()
    live._ipython_display_()
    (shown,) = outputs
    assert "application/vnd.jupyter.widget-view+json" in shown.data and not shown.update
    live.selected = {"token": 4}
    live.freeze()
    assert outputs[1].update and outputs[1].name == shown.name
    assert set(outputs[1].data) == {"text/html", "text/plain"}
    assert '"token":4' in outputs[1].data["text/html"] and live.comm is None


def test_the_environment_turns_live_views_into_snapshots(trace, outputs, monkeypatch):
    monkeypatch.setenv("GPTOSS_SNAPSHOT", "1")
    live = views.attention(trace, layer=2).live()
    live._ipython_display_()
    live.selected = {"head": 4}
    assert live.comm is None and live.selected["head"] == 4
    assert set(outputs[0].data) == {"text/html", "text/plain"}


def test_a_live_view_that_would_send_too_much_says_what_to_leave_out(trace, monkeypatch):
    from gptoss_workbench.views import live

    monkeypatch.setattr(live, "MOST", 3_000)
    with pytest.raises(ValueError, match=r"sends [\d,]+ bytes and may send 3,000; .*heads="):
        views.attention(trace, layer=2).live()
