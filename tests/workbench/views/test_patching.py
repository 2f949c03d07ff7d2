"""The patching view: effects laid out, zero white, baselines said, prompts behind a cell."""

import dataclasses
from importlib import import_module

import numpy as np
import pytest

from gptoss_workbench import views
from gptoss_workbench.views import patching

module = import_module("gptoss_workbench.views.patching")


@pytest.fixture(autouse=True)
def no_picture(monkeypatch):
    monkeypatch.setattr(views.View, "_picture", lambda self: "<img>")


def test_every_effect_stands_in_its_cell(patches, buffers_of, header_of):
    html = patching(patches)._repr_html_()
    sent, header = buffers_of(html), header_of(html)
    first, second = header["sites"]
    assert (first["name"], first["axis"], first["columns"]) == ("resid_pre", "pos", [0, 1, 2, 3])
    assert (second["name"], second["axis"], second["columns"]) == ("z", "head", [0, 1])
    at = np.flatnonzero((sent["row"] == 1) & (sent["column"] == 2))
    assert sent["effect"][at].tolist() == [1.0] and sent["shade"][at].tolist() == [255]
    assert (np.delete(sent["shade"], [at[0], len(sent["row"]) - 1]) == 128).all()
    assert sent["shade"][-1] == 128 - 64  # half way down, blue


def test_baselines_values_and_prompts_are_carried(patches, buffers_of, header_of):
    html = patching(patches)._repr_html_()
    sent, header = buffers_of(html), header_of(html)
    assert sent["clean"].tolist() == [2, 3] and sent["corrupted"].tolist() == [-2, -1]
    assert sent["value"].shape == (18, 2) and sent["mean"][6] == 2.5
    assert header["clean"][1] == ["B", " is", " 3", "."]
    assert "clean 2.5, corrupted -1.5" in header["finding"]
    assert "strongest effect 1.00 at layer 1, pos 2" in header["finding"]


def test_prompts_without_text_are_told_by_number(patches):
    prompts = patches.prompts._replace(clean_strings=None, corrupted_strings=None)
    view = patching(dataclasses.replace(patches, prompts=prompts))
    assert view.header["clean"][0] == ["[0]", "[1]", "[2]", "[3]"]


def test_several_patches_behind_a_cell_show_the_strongest(patches):
    cells = patches.where(site="z").cells
    both = dataclasses.replace(cells, pos=np.arange(6) % 2, source=np.arange(6) % 2)
    both = dataclasses.replace(both, head=np.array([0, 1, 1, 0, 0, 1]))
    value = np.array([0.0, 0.2, -0.9, 0.4, 0.1, 0.3])[:, None] * 4 + np.array([-2.0, -1.0])
    result = dataclasses.replace(patches, cells=both, value=value)
    by_head = module._lay_out(result, "z", "head")
    assert (by_head.axis, by_head.other) == ("head", "pos")
    assert module.effect_map(result, by_head)[1, 1] == pytest.approx(-0.9)
    assert patching(result).header["sites"][0]["axis"] == "pos"
    with pytest.raises(ValueError, match="differ in pos, head; got columns='slot'"):
        patching(result, columns="slot")


def test_a_state_opens_a_cell_and_an_impossible_one_raises(patches):
    state = {"site": "z", "layer": 2, "column": 1, "example": 1, "zoom": 1}
    assert patching(patches, state=state).state() == state
    assert patching(patches, "z").finding.endswith("strongest effect -0.50 at layer 2, head 1")
    for given, said in [
        ({"site": "q"}, "sites are resid_pre, z; got 'q'"),
        ({"column": 4}, r"pos are \[0, 1, 2, 3\]; got column=4"),
        ({"layer": 3}, r"layers are \[0, 1, 2\]; got layer=3"),
        ({"example": 2}, "there are 2 examples"),
    ]:
        with pytest.raises(ValueError, match=said):
            patching(patches, state=given)


def test_the_table_is_exact_and_a_cell_without_a_number_is_blank(patches):
    assert (patching(patches).to_pandas()["effect"] == patches.effect).all()
    patches.value[3] = np.nan
    assert patching(patches).buffers["shade"][3] == 0


def test_a_live_map_moves_when_selected_is_set(patches):
    live = patching(patches).live()
    live.selected = {"layer": 1, "column": 2}
    live.selected = {"example": 1}
    assert live.snapshot().state() == live.state()
    assert live.state() | {"layer": 1, "column": 2, "example": 1} == live.state()


def test_a_fragment_is_whole_and_the_same_each_time(patches):
    html = views.patching(patches)._repr_html_()
    assert html == views.patching(patches)._repr_html_()
    assert "http" not in html and "<table>" in html
    assert views.patching(patches).to_png().startswith(b"\x89PNG")
