"""The token strip: lanes, messages, and the exact table behind it."""

import pytest

from gptoss_workbench import views
from gptoss_workbench.views.transcript import LANES, lane, transcript, visible


def test_tokens_are_counted_by_lane(trace):
    assert "59 tokens in 4 messages: 6 system, 17 user, 29 analysis, 7 final" in repr(
        views.tokens(trace)
    )


def test_a_message_is_a_block_with_its_role_and_channel(trace):
    messages = transcript(trace).header()["messages"]
    assert [m["lane"] for m in messages] == ["system", "user", "analysis", "final"]
    assert messages[2]["role"] == "assistant" and messages[2]["channel"] == "analysis"
    assert [m["stop"] for m in messages[:-1]] == [m["start"] for m in messages[1:]]


def test_the_table_holds_every_token(trace):
    table = views.tokens(trace, row=1).to_pandas()
    assert list(table.columns[:4]) == ["position", "id", "text", "lane"]
    assert list(table["position"]) == list(range(59)) and table["id"][0] == 62
    assert table["sentence"].isna()[0] and table["sentence"][3] == 0


@pytest.mark.parametrize(
    ("role", "channel", "expected"),
    [
        ("user", None, "user"),
        ("assistant", "final", "final"),
        ("assistant", None, "assistant"),
        ("assistant", "musing", "assistant"),
        ("tool", "commentary", "tool"),
        (None, None, "text"),
    ],
)
def test_a_lane_is_the_channel_of_the_model_and_the_role_of_others(role, channel, expected):
    assert lane(role, channel) == expected


def test_lanes_differ_in_letter_and_colour():
    assert len({letter for letter, _ in LANES.values()}) == len(LANES)
    assert len({colour for _, colour in LANES.values()}) == len(LANES)


def test_white_space_is_made_visible():
    assert visible(" a\n\t") == "·a⏎⇥"


def test_a_trace_without_a_tokenizer_still_shows(trace):
    trace.strings = trace.spans = None
    table = views.tokens(trace).to_pandas()
    assert table["text"][0] == "[3]" and set(table["lane"]) == {"text"}


def test_views_of_one_row_share_a_key_and_other_rows_have_another(trace):
    assert transcript(trace, 0).key == views.experts(trace).header["trace"]
    assert transcript(trace, 0).key != transcript(trace, 1).key


def test_a_row_that_is_not_there_raises(trace):
    with pytest.raises(ValueError, match="rows 0 to 1; got row=2"):
        views.tokens(trace, row=2)
    trace.mask[0] = False
    with pytest.raises(ValueError, match="holds pads only"):
        views.tokens(trace)


@pytest.mark.parametrize("view", [views.tokens, views.experts, views.attention])
def test_what_is_no_trace_is_told_what_is(view):
    with pytest.raises(TypeError, match=r"expected a Trace, as model.trace\(...\) gives; got str"):
        view("text")


def test_a_trace_is_no_lens_result_and_no_patch_result(trace):
    with pytest.raises(TypeError, match=r"expected a lens result, .*; got Simple"):
        views.lens(trace)
    with pytest.raises(TypeError, match=r"expected a PatchResult, .*; got Simple"):
        views.patching(trace)
