"""A Table keeps what its columns mean, in a notebook, a data frame and a file."""

import json

import numpy as np
import pytest

from gptoss_workbench.table import Table


@pytest.fixture
def table():
    columns = {"layer": [0, 0, 1], "expert": [3, 1, 2], "share": [0.25, 0.5, 0.125]}
    return Table(
        columns,
        "share of tokens",
        "N_e / N",
        {"share": "of tokens"},
        ["chance is 0.25"],
        {"seed": 0},
    )


def test_columns_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="equal length"):
        Table({"a": [1], "b": [1, 2]}, "", "")


def test_a_unit_without_a_column_is_refused():
    with pytest.raises(ValueError, match="not there"):
        Table({"a": [1]}, "", "", {"b": "nats"})


def test_rows_are_chosen_by_value_and_by_list(table):
    assert table.where(layer=0)["expert"].tolist() == [3, 1]
    assert table.where(layer=[0, 1], expert=2)["share"].tolist() == [0.125]
    assert len(table.where(layer=7)) == 0


def test_sorting_keeps_rows_together(table):
    by_share = table.sort("share", descending=True)
    assert by_share["expert"].tolist() == [1, 3, 2]
    assert by_share.sort("expert")["share"].tolist() == [0.5, 0.125, 0.25]


def test_an_unknown_column_names_those_there_are(table):
    with pytest.raises(KeyError, match="layer, expert, share"):
        table["shares"]


def test_a_frame_carries_the_meaning(table):
    frame = table.to_pandas()
    assert list(frame.columns) == ["layer", "expert", "share"]
    assert frame.attrs["units"] == {"share": "of tokens"}
    assert frame.attrs["provenance"] == {"seed": 0}


def test_a_saved_table_has_its_provenance_beside_it(table, tmp_path):
    path = table.save(tmp_path / "deep" / "share")
    assert path.read_text().splitlines()[0] == "layer,expert,share"
    assert json.loads(path.with_suffix(".json").read_text())["source"] == "N_e / N"
    assert sorted(p.name for p in path.parent.iterdir()) == ["share.csv", "share.json"]


def test_it_shows_its_first_rows_and_says_what_is_cut():
    long = Table({"n": np.arange(40)}, "numbers", "")
    assert "28 more rows" in repr(long) and "28 more rows" in long._repr_html_()


def test_text_is_escaped_in_a_notebook():
    shown = Table({"token": ["<b>"]}, "<i>", "")._repr_html_()
    assert "&lt;b&gt;" in shown and "<i>" not in shown
