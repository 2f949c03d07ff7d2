"""Writes template_goldens.json: what the released checkpoints' chat template makes of some chats.

    python template_goldens.py chat_template.jinja > template_goldens.json

The template is the file of that name in openai/gpt-oss-20b and -120b; its SHA-256 is checked.
"""

import hashlib
import json
import sys
from pathlib import Path

import jinja2
import jinja2.sandbox

SHA256 = "a4c9919cbbd4acdd51ccffe22da049264b1b73e59055fa58811a99efbd7c8146"
DATE = "2025-06-28"

USER, MORE = {"role": "user", "content": "What is 2 + 2?"}, {"role": "user", "content": "And é?"}
RULES = {"role": "system", "content": "Be brief.\nAlways."}
ANSWER = {"role": "assistant", "thinking": "Two and two.", "content": "4"}
PLAIN = {"role": "assistant", "content": "Yes."}
CALL = {
    "role": "assistant",
    "thinking": "I look it up.",
    "tool_calls": [{"id": "1", "function": {"name": "look_up", "arguments": {"q": "é"}}}],
}
SAID = {**CALL, "content": CALL["thinking"], "thinking": ""}
RESULT = {"role": "tool", "tool_call_id": "1", "content": 'He said "7"'}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look_up",
            "description": "Looks up a word.",
            "parameters": {
                "type": "object",
                "properties": {
                    "q": {"type": "string", "description": "The word"},
                    "n": {"type": "integer"},
                    "kind": {"type": "string", "enum": ["noun", "verb"]},
                    "tags": {"type": "array", "items": {"type": "string"}},
                    "exact": {"type": "boolean"},
                    "either": {"type": ["number", "string"]},
                },
                "required": ["q"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "description": "Tells the time."}},
]
CHATS = [
    {"messages": [USER]},
    {"messages": [USER], "effort": "high"},
    {"messages": [USER], "identity": "You are nobody."},
    {"messages": [USER], "builtin_tools": ["browser"]},
    {"messages": [USER], "builtin_tools": ["browser", "python"]},
    {"messages": [RULES, USER]},
    {"messages": [{**RULES, "role": "developer"}, USER], "effort": "low"},
    {"messages": [USER, ANSWER, MORE]},
    {"messages": [USER, ANSWER, MORE, ANSWER, USER]},
    {"messages": [USER, ANSWER], "completion": False},
    {"messages": [USER, ANSWER, MORE, ANSWER], "completion": False},
    {"messages": [USER, PLAIN], "completion": False},
    {"messages": [USER], "tools": TOOLS},
    {"messages": [RULES, USER], "tools": TOOLS},
    {"messages": [USER, CALL, RESULT], "tools": TOOLS},
    {"messages": [USER, SAID, RESULT], "tools": TOOLS},
    {"messages": [USER, CALL, RESULT, CALL, RESULT], "tools": TOOLS},
    {"messages": [USER, CALL, RESULT, ANSWER, MORE], "tools": TOOLS},
    {"messages": [USER, ANSWER, MORE, CALL, RESULT], "tools": TOOLS},
    {"messages": [USER, CALL, RESULT, ANSWER, MORE, CALL, RESULT], "tools": TOOLS},
]


def template(path: str) -> jinja2.Template:
    raw = Path(path).read_bytes()
    got = hashlib.sha256(raw).hexdigest()
    if got != SHA256:
        raise ValueError(f"expected the released template, SHA-256 {SHA256}, got {got}")
    world = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    world.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    world.globals["strftime_now"] = lambda _: DATE
    return world.from_string(raw.decode())


def main() -> None:
    made = template(sys.argv[1])
    out = []
    for chat in CHATS:
        given = {"messages": chat["messages"], "tools": chat.get("tools")}
        given["add_generation_prompt"] = chat.get("completion", True)
        if "builtin_tools" in chat:
            given["builtin_tools"] = chat["builtin_tools"]
        if "effort" in chat:
            given["reasoning_effort"] = chat["effort"]
        if "identity" in chat:
            given["model_identity"] = chat["identity"]
        out.append({**chat, "text": made.render(**given)})
    json.dump({"template_sha256": SHA256, "date": DATE, "chats": out}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
