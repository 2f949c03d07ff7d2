"""The shell: one self-contained piece of HTML, equal bytes, budgets that say what to cut."""

import base64
import json
import re

import numpy as np
import pytest

from gptoss_workbench import views
from gptoss_workbench.views import packing, snapshot

KINDS = ["tokens", "experts", "attention"]


def view_of(kind, trace, **options):
    more = {"layer": 2} if kind == "attention" else {}
    return getattr(views, kind)(trace, **more, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fragment_names_no_address_outside_itself(trace, kind):
    html = view_of(kind, trace)._repr_html_()
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\((?!data:)|src=\"(?!data:)", html)


@pytest.mark.parametrize("kind", KINDS)
def test_the_inert_body_has_a_picture_and_a_table(trace, kind):
    html = view_of(kind, trace)._repr_html_()
    inert = html.split('class="gptoss-inert">')[1].split("<script")[0]
    png = base64.b64decode(re.search(r'src="data:image/png;base64,([^"]+)"', inert).group(1))
    assert png.startswith(b"\x89PNG") and len(png) < 200_000
    assert "<table>" in inert and inert.count("<tr>") >= 4


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_trace_gives_the_same_bytes(trace, kind):
    assert view_of(kind, trace)._repr_html_() == view_of(kind, trace)._repr_html_()
    assert view_of(kind, trace).to_svg() == view_of(kind, trace).to_svg()


@pytest.mark.parametrize("kind", KINDS)
def test_text_of_the_model_never_becomes_markup(trace, kind, header_of):
    trace.strings[0][9] = "</script><img src=x onerror=alert(1)>"
    html = view_of(kind, trace)._repr_html_()
    assert "</script><img" not in html and "<img src=x" not in html
    assert header_of(html)["tokens"]["text"][6] == "</script><img src=x onerror=alert(1)>"


@pytest.mark.parametrize("kind", KINDS)
def test_pads_are_left_out(trace, kind, header_of):
    texts = header_of(view_of(kind, trace)._repr_html_())["tokens"]
    assert "<|endoftext|>" not in texts["text"]
    assert texts["position"][0] == 3 and len(texts["id"]) == int(trace.mask[0].sum())


@pytest.mark.parametrize("kind", KINDS)
def test_a_view_opens_in_the_state_it_is_given(trace, kind):
    states = {
        "tokens": {"token": 4},
        "experts": {"statistic": "entropy", "token": 4, "layer": 2, "expert": 5, "zoom": 2},
        "attention": {"head": 3, "query": 7, "sort": "sink", "zoom": 1},
    }
    state = states[kind]
    assert view_of(kind, trace, state=state).state() == state
    copied = json.dumps({"view": kind, **state})
    assert view_of(kind, trace, state=copied).state() == state


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_state_raises_and_lists_what_is_known(trace, kind):
    with pytest.raises(ValueError, match=f"views.{kind}: state knows .*; got colour"):
        view_of(kind, trace, state={"colour": 1})
    with pytest.raises(ValueError, match="another view"):
        view_of(kind, trace, state={"view": "lens"})


def test_a_view_over_budget_raises_with_its_size_and_the_keyword(trace):
    with pytest.raises(ValueError, match=r"takes [\d,]+ bytes and may take 2,000; .*layers="):
        views.experts(trace, budget=2_000)
    with pytest.raises(
        ValueError, match=r"takes 9,000,000 .*may take 8,000,000; .*heads=\[\.\.\.\]$"
    ):
        snapshot.check_budget("attention", 9_000_000, budget=10**9, smaller="heads=[...]")


def test_quantised_values_round_trip_within_half_a_step():
    values = np.linspace(0, 2, 301)
    linear = packing.quantise(values, 0.0, 2.0) / 255 * 2
    assert np.abs(linear - values).max() <= 1 / 255 + 1e-9
    assert (packing.quantise(np.array([0.01, 1.0]), root=True) == [26, 255]).all()


def test_signed_values_are_centred_on_128_and_0_is_no_number():
    values = np.array([-2.0, -1.0, 0.0, 1.0, 2.0, np.nan])
    assert packing.quantise_signed(values, 2.0).tolist() == [1, 64, 128, 192, 255, 0]


def test_numbers_that_cannot_be_compressed_stay_below_the_bound(trace):
    noise = np.random.default_rng(0).integers(0, 256, 100_003, dtype=np.uint8)
    buffers = {"noise": noise, "place": np.arange(5, dtype=np.int16)}
    assert len(packing.packed(buffers)) <= packing.most_bytes(buffers)
    assert packing.layout(buffers)[1]["offset"] == 100_008


def test_files_are_written_where_they_are_asked_for(trace, tmp_path):
    view = views.tokens(trace)
    view.to_png(tmp_path / "a.png")
    view.to_svg(tmp_path / "a.svg")
    page = view.to_html(tmp_path / "deep" / "a.html").read_text()
    assert (tmp_path / "a.png").read_bytes() == view.to_png()
    assert (tmp_path / "a.svg").read_text().lstrip().startswith("<?xml")
    assert page.startswith("<!doctype html>") and view.fragment() in page


def test_each_renderer_is_small_and_stands_on_nothing_outside():
    for file in snapshot.HERE.glob("*.js"):
        text = file.read_text()
        assert len(text) < 60_000
        assert not re.search(r"^\s*import |import\(|fetch\(|XMLHttpRequest|innerHTML", text, re.M)
