"""The lens view: tokens, probabilities and ranks as the page gets them, states, budgets."""

import numpy as np
import pytest

from gptoss_workbench import views


@pytest.fixture(autouse=True)
def no_picture(monkeypatch):
    monkeypatch.setattr(views.View, "_picture", lambda self: "<img>")


def test_the_page_gets_tokens_and_probabilities_of_every_cell(lens_result, buffers_of, header_of):
    html = views.lens(lens_result)._repr_html_()
    sent, header = buffers_of(html), header_of(html)
    real = lens_result.places[0] >= 0
    tokens = np.array(header["ids"])[np.moveaxis(sent["tokens"], 0, -1)]
    assert (tokens == lens_result.tokens[:, 0, real].numpy()).all()
    log_probs = np.moveaxis(sent["log_probs"], 0, -1) / -header["step"]
    assert np.allclose(log_probs, lens_result.log_probs[:, 0, real], atol=2e-4)
    assert (np.array(header["ids"])[sent["prompt"]] == lens_result.prompt[0, real].numpy()).all()
    assert (sent["rank"] == lens_result.rank[:, 0, real].numpy()).all()
    assert header["texts"][header["ids"].index(9)] == "</script>" and '</script>"' not in html


def test_pads_and_positions_that_are_not_shown_are_left_out(lens_result):
    assert views.lens(lens_result).header["positions"] == list(range(6))
    assert views.lens(lens_result, row=1).header["positions"] == list(range(8))
    part = views.lens(lens_result, row=1, positions=(2, 5))
    assert part.header["positions"] == [2, 3, 4] and part.buffers["tokens"].shape == (3, 4, 3)
    with pytest.raises(ValueError, match=r"lie within 0 to 8; got \(2, 9\)"):
        views.lens(lens_result, row=1, positions=(2, 9))
    with pytest.raises(ValueError, match="rows 0 to 1; got row=2"):
        views.lens(lens_result, row=2)


def test_colours_without_numbers_are_not_offered(lens_result):
    lens_result.kl.fill_(float("nan"))
    lens_result.target_log_prob.fill_(float("nan"))
    lens_result.target.fill_(-1)
    view = views.lens(lens_result)
    assert [s["name"] for s in view.header["statistics"]] == ["probability", "entropy"]
    assert (view.buffers["target"] == 65535).all()
    with pytest.raises(ValueError, match="probability, entropy; got 'KL to final'"):
        views.lens(lens_result, colour="KL to final")


def test_a_state_opens_a_cell_with_its_pins_and_an_impossible_one_raises(lens_result):
    state = {"layer": 2, "position": 5, "pins": [8, 10], "colour": "entropy"}
    assert views.lens(lens_result, state=state).state() == state | {"site": None, "zoom": 1}
    with pytest.raises(ValueError, match=r"layers \[0, 1, 2, 3\] at resid_post; got layer=9"):
        views.lens(lens_result, state={"layer": 9})
    with pytest.raises(ValueError, match="positions are 0 to 5; got 6"):
        views.lens(lens_result, state={"position": 6})


def test_the_table_is_the_lens_table_of_the_row(lens_result):
    table = views.lens(lens_result, row=1).to_pandas()
    assert set(table["row"]) == {1} and len(table) == 4 * 8


def test_the_finding_says_when_the_answer_is_there(lens_result):
    top = lens_result.tokens[:, 0, 2:, 0]
    share = (top == top[-1]).double().mean(1).tolist()
    layer = next(i for i, each in enumerate(share) if each >= 0.5)
    assert f"at layer {layer} {share[layer]:.0%} of the most likely" in repr(
        views.lens(lens_result)
    )


def test_a_lens_too_long_names_what_to_leave_out(lens_result):
    with pytest.raises(ValueError, match=r"may take 800; show less with positions="):
        views.lens(lens_result, budget=800)


def test_a_live_lens_moves_when_selected_is_set(lens_result):
    live = views.lens(lens_result).live()
    live.selected = {"layer": 1, "position": 3}
    live.selected = {"pins": [8]}
    assert live.state()["layer"] == 1 and live.state()["pins"] == [8]
    assert live.snapshot().state() == live.state()


def test_a_fragment_is_whole_and_the_same_each_time(lens_result):
    html = views.lens(lens_result)._repr_html_()
    assert html == views.lens(lens_result)._repr_html_()
    assert "http" not in html and "<table>" in html
    assert views.lens(lens_result).to_png().startswith(b"\x89PNG")
