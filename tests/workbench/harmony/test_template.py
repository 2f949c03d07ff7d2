"""Rendering equals the released chat template's but for the differences `render` documents."""

import json
import re
from pathlib import Path

import pytest

from gptoss_workbench import harmony

GOLDENS = json.loads(Path(__file__).with_name("template_goldens.json").read_text(encoding="utf-8"))


def as_documented(text: str) -> str:
    """Turn this package's text into the template's by the documented differences alone."""
    text = text.replace("commentary <|constrain|>json<|message|>", "commentary json<|message|>")
    lone = r"(# Instructions\n\n(?:(?!# Tools|<\|).)*?)<\|end\|>"
    text = re.sub(lone, r"\1\n\n<|end|>", text, flags=re.S)
    result = r"(?<= to=assistant<\|channel\|>commentary<\|message\|>)(.*?)(?=<\|end\|>)"
    return re.sub(result, lambda found: json.dumps(found[0], ensure_ascii=False), text)


@pytest.mark.parametrize("chat", GOLDENS["chats"], ids=range(len(GOLDENS["chats"])))
def test_chats_equal_the_released_template(chat):
    wanted = chat["text"]
    options = {key: value for key, value in chat.items() if key not in ("messages", "text")}
    trained = not options.get("completion", True)
    got = harmony.render(chat["messages"], date=GOLDENS["date"], training=trained, **options)
    assert as_documented(got) == wanted
    if len(chat["messages"]) == 1 and not chat.get("tools"):
        assert got == wanted
