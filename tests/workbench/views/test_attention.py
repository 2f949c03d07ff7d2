"""Attention: sink and window told apart, heads that fit, exact weights."""

import numpy as np
import pytest

from gptoss_workbench import views


def square(sent, view, head):
    """[query, key] of one head as the page reads it."""
    n, at = len(view.header["tokens"]["id"]), view.header["sent"].index(head)
    half = n * (n + 1) // 2
    out = np.zeros((n, n), np.uint8)
    out[np.tri(n, dtype=bool)] = sent["weights"][at * half : (at + 1) * half]
    return out


def test_the_page_gets_the_square_root_of_weights_and_sink(trace, buffers_of):
    view = views.attention(trace, layer=2, head=5)
    sent = buffers_of(view._repr_html_())
    real = trace.mask[0]
    pattern = trace.activations["blocks.2.attn.hook_pattern"][0][:, real][:, :, real]
    sink = trace.activations["blocks.2.attn.hook_sink"][0][:, real]
    for head in range(8):
        error = np.abs(square(sent, view, head) / 255 - pattern[head].sqrt().numpy())
        assert error.max() <= 0.5 / 255 + 1e-6
    assert np.abs(sent["lead"][0] / 255 - sink.sqrt().numpy()).max() <= 0.5 / 255 + 1e-6


def test_a_small_picture_holds_the_largest_weight_of_each_cell(trace, buffers_of):
    sent = buffers_of(views.attention(trace, layer=3)._repr_html_())["thumbs"]
    real = trace.mask[0]
    pattern = trace.activations["blocks.3.attn.hook_pattern"][0][:, real][:, :, real]
    assert sent.shape == (8, 46, 46)
    assert sent.max() == np.rint(255 * pattern.max().sqrt().item())
    assert np.abs(sent[6].max() / 255 - pattern[6].max().sqrt().item()) < 0.5 / 255 + 1e-6


def test_heads_are_measured_for_sorting(trace):
    view = views.attention(trace, layer=2, sort="entropy")
    real = trace.mask[0]
    pattern = trace.activations["blocks.2.attn.hook_pattern"][0][:, real][:, :, real]
    entropy = -(pattern * pattern.clamp(min=1e-12).log2()).sum(-1).mean(-1)
    assert np.allclose(view.header["entropy"], entropy, atol=1e-3)
    assert view.state()["sort"] == "entropy"
    with pytest.raises(ValueError, match="number, entropy, sink; got 'size'"):
        views.attention(trace, layer=2, sort="size")


def test_the_table_is_exact_and_each_query_sums_to_one(trace):
    table = views.attention(trace, layer=2, row=1).to_pandas()
    pattern = trace.activations["blocks.2.attn.hook_pattern"][1]
    row = table[(table["head"] == 3) & (table["query"] == 20)].set_index("key")["weight"]
    assert row[15] == pattern[3, 20, 15] and -1 in row.index
    assert np.allclose(table.groupby(["head", "query"])["weight"].sum(), 1, atol=1e-5)


def test_a_sink_that_was_not_recorded_is_what_the_row_lacks(trace):
    with_sink = views.attention(trace, layer=2).to_pandas()
    del trace.activations["blocks.2.attn.hook_sink"]
    assert np.allclose(
        views.attention(trace, layer=2).to_pandas()["weight"], with_sink["weight"], atol=1e-6
    )


def test_the_window_is_that_of_the_layer(trace):
    assert views.attention(trace, layer=2).header["window"] == 8
    assert views.attention(trace, layer=3).header["window"] is None


def test_the_first_recorded_layer_is_shown_by_default(trace):
    assert views.attention(trace).header["layer"] == 2


def test_a_pattern_that_was_not_recorded_names_the_filter(trace):
    with pytest.raises(ValueError, match=r"names_filter=\['blocks.1.attn.hook_pattern'\]"):
        views.attention(trace, layer=1)


def test_a_head_that_is_not_there_raises(trace):
    with pytest.raises(ValueError, match="heads are 0 to 7; got 8"):
        views.attention(trace, layer=2, head=8)
    with pytest.raises(ValueError, match=r"head=0 is not among heads=\[3\]"):
        views.attention(trace, layer=2, heads=[3])


def test_heads_that_do_not_fit_are_left_out_and_the_view_says_so(long_trace):
    view = views.attention(long_trace, layer=3, head=6, budget=1_000_000)
    assert 6 in view.header["heads"] and len(view.header["heads"]) < 8
    assert view.header["leftOut"] == 8 - len(view.header["heads"])
    with pytest.raises(ValueError, match=r"show less with heads=\[\.\.\.\]"):
        views.attention(long_trace, layer=3, heads=list(range(8)), budget=500_000)


def test_a_cut_trace_counts_what_its_keys_were_cut_from(trace, buffers_of):
    pattern = trace.activations["blocks.3.attn.hook_pattern"]
    whole = views.attention(trace, layer=3, row=1).to_pandas()
    keep = slice(20, 40)
    trace.context = object()
    trace.tokens, trace.mask = trace.tokens[:, keep], trace.mask[:, keep]
    trace.strings = [row[keep] for row in trace.strings]
    trace.spans = [row[keep] for row in trace.spans]
    trace.places = tuple(range(20, 40))
    trace.activations["blocks.3.attn.hook_pattern"] = pattern[:, :, keep]
    del trace.activations["blocks.3.attn.hook_sink"]
    view = views.attention(trace, layer=3, row=1)
    assert view.header["lead"] == ["sink", "cut away"]
    cut = buffers_of(view._repr_html_())["lead"][1] / 255
    assert np.allclose(cut[0] ** 2, pattern[1, 0, keep, :20].sum(-1), atol=5e-3)
    part = view.to_pandas().query("key >= 0").merge(whole, on=["head", "query", "key"])
    assert len(part) and np.allclose(part["weight_x"], part["weight_y"])
