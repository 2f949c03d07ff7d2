"""A page of several views."""

from importlib import import_module

import pytest

from gptoss_workbench import views


def test_a_page_holds_headings_views_facts_and_provenance(trace, tmp_path):
    shown = [("Channels <here>", views.tokens(trace)), views.experts(trace)]
    path = views.page(
        shown,
        title="First & last",
        path=tmp_path / "out" / "page.html",
        told={"prompt": "Find <b>G</b>?"},
        provenance=trace.provenance,
    )
    text = path.read_text()
    assert "<title>First &amp; last</title>" in text and "Channels &lt;here&gt;" in text
    assert "Find &lt;b&gt;G&lt;/b&gt;?" in text and "made by hand" in text
    assert text.count('<div class="gptoss-view"') == 2 and "http" not in text


def test_a_page_over_the_limit_raises(trace, tmp_path, monkeypatch):
    monkeypatch.setattr(import_module("gptoss_workbench.views.page"), "LIMIT", 1000)
    with pytest.raises(ValueError, match=r"views.page: the page takes [\d,]+ bytes"):
        views.page([views.tokens(trace)], title="x", path=tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()
