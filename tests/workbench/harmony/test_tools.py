"""Tool declarations equal openai-harmony's, character for character."""

import random
import sys
from pathlib import Path

import openai_harmony as oh
import pytest

from gptoss_workbench.harmony import render, tools_text

sys.path.insert(0, str(Path(__file__).parent))
import harmony_conversations as conversations


def theirs(encoding, tools):
    content = oh.DeveloperContent.new().with_function_tools(
        [oh.ToolDescription(**tool) for tool in tools]
    )
    message = oh.Message.from_role_and_content(oh.Role.DEVELOPER, content)
    text = encoding.decode(encoding.render(message))
    return text.removeprefix("<|start|>developer<|message|>").removesuffix("<|end|>")


@pytest.mark.parametrize("seed", range(60))
def test_random_schemas_equal_openai_harmony(encoding, seed):
    rng = random.Random(seed)
    tools = [
        {
            "name": "f",
            "description": rng.choice(["", "One", "One\nTwo", "One\n\nTwo\n"]),
            "parameters": conversations.decorated(rng, conversations.object_schema(rng, 3)),
        },
        {"name": "g", "description": "", "parameters": conversations.schema(rng)},
        {"name": "h", "description": "No parameters"},
    ]
    assert tools_text(tools) == theirs(encoding, tools)


def test_openai_style_and_bare_definitions_read_alike():
    bare = {"name": "f", "description": "D", "parameters": {"type": "object", "properties": {}}}
    assert tools_text([{"type": "function", "function": bare}]) == tools_text([bare])


def test_schemas_that_are_no_objects_are_any():
    text = tools_text([{"name": "f", "parameters": {"type": "object", "properties": {"x": True}}}])
    assert "x?: any," in text


@pytest.mark.parametrize("names", [["browser"], ["python"], ["python", "browser"]])
def test_built_in_tools_equal_openai_harmony(encoding, names):
    content = oh.SystemContent.new()
    for name in names:
        content = content.with_tools(getattr(oh.ToolNamespaceConfig, name)())
    wanted = encoding.decode(encoding.render(oh.Message.from_role_and_content("system", content)))
    assert render([], builtin_tools=names, completion=False) == wanted


def test_an_unknown_built_in_tool_is_named():
    with pytest.raises(ValueError, match="shell"):
        render("Hi", builtin_tools=["shell"])
