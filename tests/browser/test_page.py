"""The snapshot page in a real browser: it draws, answers pointer and keys, in light and dark."""

import io
import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser
LIVE = ".gptoss-view[data-live] .foot"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A page of all three views, made from the trace the view tests make by hand."""
    from gptoss_workbench.views.page import trace_page

    file = Path(__file__).parents[1] / "workbench" / "views" / "conftest.py"
    spec = spec_from_file_location("hand", file)
    hand = module_from_spec(spec)
    spec.loader.exec_module(hand)
    folder = tmp_path_factory.mktemp("page")
    path = trace_page(hand.hand_trace(), folder / "page.html", title="First trace", layer=2, head=5)
    return path.as_uri()


def view(page, kind):
    return page.locator(f'[data-kind="{kind}"]')


def line(page, kind):
    return view(page, kind).locator(".line").inner_text()


def state(page, kind):
    return json.loads(view(page, kind).locator(".foot code").inner_text())


def brightness(picture):
    from PIL import Image

    small = Image.open(io.BytesIO(picture)).convert("L")
    return small.getpixel((4, 4)), len(small.getcolors())


@pytest.mark.parametrize(("scheme", "paper"), [("light", range(240, 256)), ("dark", range(0, 60))])
def test_the_page_draws_in_light_and_dark_without_an_error(tab, address, scheme, paper):
    page, seen = tab(address, scheme=scheme)
    page.locator(LIVE).nth(2).wait_for()
    assert page.locator(".gptoss-inert:visible").count() == 0
    corner, shades = brightness(page.screenshot())
    assert corner in paper and shades > 40
    assert seen.errors == [] and seen.blocked == []


def test_the_theme_follows_the_reader_while_the_page_is_open(tab, address):
    page, _ = tab(address)
    page.locator(LIVE).nth(2).wait_for()
    before, _ = brightness(page.screenshot())
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("document.querySelectorAll('[data-theme=dark]').length === 3")
    assert before > 200 and brightness(page.screenshot())[0] < 60


def test_tokens_answer_pointer_click_and_keys(tab, address):
    page, seen = tab(address)
    page.locator(LIVE).nth(2).wait_for()
    tokens = view(page, "tokens").locator(".token")
    tokens.nth(9).hover()
    assert line(page, "tokens") == "token 12 “Given” · user · body · sentence 10 · id 12"
    tokens.nth(9).click()
    assert tokens.nth(9).get_attribute("aria-selected") == "true"
    assert state(page, "tokens")["token"] == 9
    page.keyboard.press("ArrowRight")
    assert "“·E”" in line(page, "tokens")
    page.keyboard.press("Enter")
    assert state(page, "tokens")["token"] == 10
    page.keyboard.press("Escape")
    assert state(page, "tokens")["token"] is None
    assert line(page, "tokens").startswith("59 tokens in 4 messages")
    assert seen.errors == []


def test_a_token_held_in_one_view_is_held_in_all(tab, address):
    page, _ = tab(address)
    page.locator(LIVE).nth(2).wait_for()
    view(page, "tokens").locator(".token").nth(12).click()
    assert state(page, "experts")["token"] == 12 and state(page, "attention")["query"] == 12
    assert view(page, "attention").locator(".token.painted").count() > 0


def test_experts_answer_pointer_click_and_keys(tab, address):
    page, seen = tab(address)
    page.locator(LIVE).nth(2).wait_for()
    here = view(page, "experts")
    maps = here.locator("canvas.top")
    assert "Load:" in here.locator(".panel-title").first.inner_text()
    maps.first.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    assert line(page, "experts").startswith("layer 1 · token 5 “<|message|>”")
    page.keyboard.press("Enter")
    assert state(page, "experts")["token"] == 2
    assert "Experts of token 5" in here.locator(".panel-title").first.inner_text()
    maps.nth(1).focus()
    page.keyboard.press("ArrowRight")
    assert line(page, "experts").startswith("layer 0 · expert 1 · takes ")
    page.keyboard.press("Enter")
    assert state(page, "experts") | {"layer": 0, "expert": 1} == state(page, "experts")
    assert here.locator(".takes .panel-title").inner_text().startswith("Layer 0, expert 1 takes ")
    here.get_by_role("button", name="entropy").click()
    assert state(page, "experts")["statistic"] == "entropy"
    box = maps.first.bounding_box()
    maps.first.hover(position={"x": box["width"] / 2, "y": box["height"] - 6})
    assert line(page, "experts").startswith("layer 3 · token ")
    assert seen.errors == []


def test_attention_answers_pointer_head_and_keys(tab, address):
    page, seen = tab(address)
    page.locator(LIVE).nth(2).wait_for()
    here = view(page, "attention")
    matrix = here.locator("canvas.top")
    box = matrix.bounding_box()
    matrix.hover(position={"x": box["width"] / 2, "y": 0.6 * box["height"]})
    said = line(page, "attention")
    assert said.startswith("query ") and "sink " in said and "→ key " in said
    painted = here.locator(".token.painted").count()
    assert 1 <= painted <= 8  # the window
    matrix.click(position={"x": box["width"] / 2, "y": 0.6 * box["height"]})
    held = state(page, "attention")["query"]
    page.mouse.move(2, 2)
    assert held is not None and here.locator(".token.locked").count() == 1
    here.locator("button.thumb").nth(2).click()
    assert state(page, "attention")["head"] == 2
    assert here.locator("button.thumb").nth(2).get_attribute("aria-pressed") == "true"
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    assert state(page, "attention")["head"] == 6
    assert here.locator("button.thumb[tabindex='0']").count() == 1
    assert seen.errors == []


def test_without_scripts_picture_and_table_remain(chromium, address):
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address)
    assert page.locator(".gptoss-inert img").count() == 3
    assert page.locator(".gptoss-inert table").first.is_visible()
    context.close()


def test_what_is_focusable_has_a_name(tab, address):
    page, _ = tab(address)
    page.locator(LIVE).nth(2).wait_for()
    names = page.evaluate(
        "[...document.querySelectorAll('[tabindex],button,img:not(button img)')]"
        ".map(e => e.getAttribute('aria-label') || e.getAttribute('alt') || e.textContent.trim())"
    )
    assert len(names) > 15 and all(names)
    assert page.locator("[role=status][aria-live=polite]").count() == 3
