"""Random conversations, written for this package and for openai-harmony side by side."""

import json
import random

import openai_harmony as oh

from gptoss_workbench.harmony import Message

WORDS = (
    "So 7 * 8 = 56.", "Wait, let me check again!", "the answer is 3.5", "é 日本語 🦙", "\n\n1. One",
    "<|end|>", "<|start|>system", "don't", "  spaces  ", "{\"a\": [1, 2]}", "e.g. this", "",
)  # fmt: skip
CALL = "<|constrain|>json"


def text(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(0, 6)))


def turns(rng: random.Random) -> list[Message]:
    out = []
    for _ in range(rng.randint(1, 4)):
        out.append(Message("user", text(rng), name=rng.choice([None, None, "bob"])))
        for _ in range(rng.randint(0, 3)):
            out.append(Message("assistant", text(rng), "analysis"))
            if rng.random() < 0.5:
                out += call(rng)
        if rng.random() < 0.3:
            out.append(Message("assistant", text(rng), "commentary"))
        if rng.random() < 0.7:
            out.append(Message("assistant", text(rng), "final"))
    return out


def call(rng: random.Random) -> list[Message]:
    tool, channel, kind = rng.choice(
        [
            ("functions.look_up", "commentary", CALL),
            ("functions.f", "commentary", "json"),
            ("python", "analysis", "code"),
            ("browser.search", "analysis", None),
        ]
    )
    made = Message("assistant", json.dumps({"q": text(rng)}), channel, tool, kind)
    return [made, Message("tool", text(rng), channel, "assistant", name=tool)]


def theirs(message: Message) -> oh.Message:
    author = oh.Author(role=oh.Role(message.role), name=message.name)
    out = oh.Message.from_author_and_content(author, message.content)
    out.channel, out.recipient = message.channel, message.recipient
    out.content_type = message.content_type
    return out


def plain(rng: random.Random, depth: int) -> dict:
    kind = rng.choice(["string", "number", "integer", "boolean", "enum", "list", "any", "odd"])
    if kind == "enum":
        return {"type": "string", "enum": rng.sample(["red", "green", "blue", 3], 2)}
    if kind == "list":
        return {"type": rng.sample(["integer", "string", "null", "number"], rng.randint(1, 3))}
    return {} if kind == "any" else {"type": "null" if kind == "odd" else kind}


def schema(rng: random.Random, depth: int = 3) -> dict:
    kind = rng.choice(["object", "array", "oneOf", "plain", "plain"]) if depth else "plain"
    if kind == "object":
        out = object_schema(rng, depth)
    elif kind == "array":
        out = {"type": "array"}
        if rng.random() < 0.8:
            out["items"] = schema(rng, depth - 1)
    elif kind == "oneOf":
        out = {"oneOf": [schema(rng, depth - 1) for _ in range(rng.randint(1, 3))]}
    else:
        out = plain(rng, depth)
    return decorated(rng, out)


def object_schema(rng: random.Random, depth: int) -> dict:
    names = rng.sample(["zeta", "alpha", "query", "n", "deep"], rng.randint(0, 4))
    out = {"type": "object", "properties": {name: schema(rng, depth - 1) for name in names}}
    if rng.random() < 0.7:
        out["required"] = [name for name in names if rng.random() < 0.5]
    return out


def decorated(rng: random.Random, out: dict) -> dict:
    extras = {
        "description": rng.choice(["A city", "Same", 'Über alles, e.g. "this"']),
        "title": "Title",
        "examples": rng.choice([[], ["one", 2, "three"]]),
        "nullable": rng.choice([True, False]),
        "default": rng.choice(["red", 1, 1.5, None, True, {"z": 1, "a": [1, "é"]}]),
    }
    return {**out, **{key: value for key, value in extras.items() if rng.random() < 0.25}}
