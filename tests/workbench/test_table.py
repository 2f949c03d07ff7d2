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


def test_text_sorts_both_ways_and_what_is_missing_comes_last():
    table = Table({"name": ["b", "a", "c"], "value": [1.0, np.nan, 2.0]}, "", "")
    assert table.sort("name", descending=True)["name"].tolist() == ["c", "b", "a"]
    assert table.sort("value", descending=True)["name"].tolist() == ["c", "b", "a"]


def test_rows_are_chosen_by_a_function_and_walked(table):
    assert table.where(share=lambda share: share > 0.2)["expert"].tolist() == [3, 1]
    assert [row["expert"] for row in table.head(2)] == [3, 1]


def test_a_saved_table_comes_back(tmp_path):
    columns = {"group": ["NA", "de"], "n": [1, 2], "low": [np.nan, 0.1]}
    before = Table(columns, "title", "a formula: Σ", {"n": "tokens"}, ["a note"], {"seed": 1})
    after = Table.load(before.save(tmp_path / "table"))
    assert after.title == before.title and after.units == before.units
    assert list(after.notes) == ["a note"] and after.provenance == {"seed": 1}
    assert after["group"].tolist() == ["NA", "de"] and after["n"].dtype == np.int64
    assert np.array_equal(after["low"], before["low"], equal_nan=True)
    with pytest.raises(FileNotFoundError, match=r"expected other\.csv"):
        Table.load(tmp_path / "other")


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


def test_a_table_of_an_interrupted_run_says_so():
    table = Table({"n": [1, 2]}, "numbers", "", provenance={"complete": False})
    assert repr(table.rows(slice(1))).count("INCOMPLETE") == 1
    assert "INCOMPLETE" not in repr(Table({"n": [1]}, "", "", provenance={"complete": True}))
