"""Compared runs, lens and patching in a real browser: pointer, keys, pins, light and dark."""

import dataclasses
import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser
LIVE = ".gptoss-view[data-live] .foot"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A page of the three, from results made by hand."""
    import torch

    from gptoss_workbench import views
    from gptoss_workbench.trace import Routing, Trace

    file = Path(__file__).parents[1] / "workbench" / "views" / "conftest.py"
    spec = spec_from_file_location("hand", file)
    hand = module_from_spec(spec)
    spec.loader.exec_module(hand)
    made = hand.hand_trace()
    facts = {f.name: getattr(made, f.name) for f in dataclasses.fields(Trace) if f.name != "axes"}
    routing = Routing(made.routing.experts, made.routing.weights)
    here = Trace(**(facts | {"routing": routing, "activations": {}}))
    experts = torch.where(routing.experts == 3, 15, routing.experts)  # 3 gives way to 15
    there = dataclasses.replace(here, routing=routing._replace(experts=experts))
    shown = [
        views.experts(here, other=there, lens={(2, 5): [" seven"]}),
        views.lens(hand.hand_lens()),
        views.patching(hand.hand_patches()),
    ]
    path = views.page(shown, title="Maps", path=tmp_path_factory.mktemp("maps") / "maps.html")
    return path.as_uri()


def view(page, kind):
    return page.locator(f'[data-kind="{kind}"]')


def state(page, kind):
    return json.loads(view(page, kind).locator(".foot code").inner_text())


def line(page, kind):
    return view(page, kind).locator(".line").inner_text()


def keys(page, *names):
    for name in names:
        page.keyboard.press(name)


def test_the_maps_answer_keys_and_clicks(tab, address, tmp_path):
    page, seen = tab(address, scheme="dark")
    page.locator(LIVE).nth(2).wait_for()
    check_lens(page)
    check_patching(page)
    view(page, "experts").locator("canvas.top").first.focus()
    keys(page, "ArrowRight", "ArrowDown")
    assert "other run:" in line(page, "experts")
    assert "59 tokens in both" in view(page, "experts").locator(".note").inner_text()
    page.screenshot(path=tmp_path / "maps_dark.png", full_page=True)
    assert page.locator("[data-theme=dark]").count() == 3
    assert seen.errors == [] and seen.blocked == []


def check_lens(page):
    here = view(page, "lens")
    here.locator("canvas.top").focus()
    keys(page, "ArrowRight", "ArrowDown", "ArrowDown", "Enter")
    assert line(page, "lens").startswith("layer 2 · after 1 “")
    assert state(page, "lens")["layer"] == 2 and state(page, "lens")["position"] == 1
    assert here.locator(".top-row").count() == 3
    here.locator("button.pin").first.click()
    assert len(state(page, "lens")["pins"]) == 1
    assert here.locator("svg circle").count() > 4  # the target's four, and the pinned token's
    here.get_by_role("button", name="entropy").click()
    assert state(page, "lens")["colour"] == "entropy"
    here.locator("canvas.top").focus()
    keys(page, "Escape")
    assert state(page, "lens")["layer"] is None


def check_patching(page):
    here = view(page, "patching")
    top = here.locator("canvas.top")
    top.focus()
    keys(page, "ArrowDown", "ArrowRight", "ArrowRight", "Enter")
    assert line(page, "patching").startswith("layer 1 · position 2 “·8” · effect 1.00")
    assert state(page, "patching") | {"layer": 1, "column": 2} == state(page, "patching")
    assert "patched 2.00" in here.locator(".facts").inner_text()
    assert here.locator(".prompt .token.locked").count() == 2
    here.get_by_role("button", name="next example").click()
    assert state(page, "patching")["example"] == 1
    assert "corrupted −1.00" in here.locator(".facts").inner_text()
    here.get_by_role("button", name="z", exact=True).click()
    top = here.locator("canvas.top")
    box = top.bounding_box()
    top.hover(position={"x": box["width"] - 6, "y": box["height"] - 8})
    assert "layer 2 · head 1" in line(page, "patching") and "−0.500" in line(page, "patching")
