"""A harmony message, and how OpenAI-style dicts become messages.

A key that no message could keep raises, unless it holds nothing.

A dict may give several messages, as in the official chat template: `thinking` becomes a message in
the analysis channel, every function call one in the commentary channel. A dict's "system" text is
harmony's developer message; harmony's own system message is written by `render`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool")
CHANNELS = ("analysis", "commentary", "final")
THINKING_KEYS = ("thinking", "reasoning_content", "reasoning")
FIELDS = ("channel", "recipient", "content_type", "name")
SPOKEN = (*THINKING_KEYS, "tool_calls")
"""What only an assistant's dict without a channel has."""
FUNCTIONS = "functions"


@dataclass(frozen=True)
class Message:
    """One message, as written between <|start|> and <|end|>.

    Message("assistant", "So 7 * 8 = 56.", channel="analysis")
    """

    role: str | None
    """One of ROLES; None only in parsed output whose header named none."""
    content: str
    """The text after <|message|>."""
    channel: str | None = None
    """analysis, commentary or final for the assistant; commentary for tool results."""
    recipient: str | None = None
    """Whom the message calls or answers: "functions.lookup", "assistant"."""
    content_type: str | None = None
    """As written in the header: "<|constrain|>json" for function calls, "code" for python."""
    name: str | None = None
    """The tool's full name for role tool ("functions.lookup"), else an author's name."""

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> list[Message]:
        """Turn one OpenAI-style dict into messages; see `conversation` for a whole chat."""
        role = entry.get("role")
        if role not in ROLES:
            raise ValueError(f"Message.from_dict: expected a role among {ROLES}, got {role!r}")
        _check(entry, role)
        if role == "assistant" and entry.get("channel") is None:
            return _assistant(entry)
        content = _text(entry.get("content"))
        given = {k: entry.get(k) for k in FIELDS}
        if role == "tool":
            return [_tool_result(content, entry)]
        return [cls("developer" if role == "system" else role, content, **given)]

    def to_dict(self) -> dict[str, str | None]:
        """Give the fields that are set, as a plain dict; `from_dict` reads all but role system."""
        return {k: v for k, v in vars(self).items() if v is not None or k in ("role", "content")}


def _check(entry: Mapping[str, Any], role: str) -> None:
    """Refuse an entry of which something would be lost."""
    spoken = SPOKEN if role == "assistant" and entry.get("channel") is None else ()
    known = ("role", "content", *FIELDS, *spoken, *(("tool_call_id",) if role == "tool" else ()))
    lost = [key for key, value in entry.items() if key not in known and value not in (None, [])]
    if lost:
        beside = " beside a channel" if set(lost) <= set(SPOKEN) and role == "assistant" else ""
        raise ValueError(
            f"Message.from_dict: {', '.join(map(repr, lost))} cannot be kept{beside} in a message "
            f"of role {role!r}; known there are {', '.join(known)}"
        )
    channel = entry.get("channel")
    if channel is not None and channel not in CHANNELS:
        raise ValueError(f"Message.from_dict: expected a channel among {CHANNELS}, got {channel!r}")
    if "content" not in entry and not any(entry.get(key) for key in spoken):
        instead = f" or one of {', '.join(spoken)}" if spoken else ""
        raise ValueError(
            f"Message.from_dict: expected 'content'{instead} in a message of role {role!r}, got "
            f"only {', '.join(map(repr, entry))}"
        )
    thoughts = [key for key in THINKING_KEYS if entry.get(key)]
    if len({_text(entry[key]) for key in thoughts}) > 1:
        raise ValueError(f"Message.from_dict: {' and '.join(thoughts)} differ; give one of them")


def conversation(messages: Iterable[Message | Mapping[str, Any]]) -> list[Message]:
    """Turn a mix of Messages and OpenAI-style dicts into Messages.

    A tool result without a name takes it from the call of its `tool_call_id`, or else, as in the
    official template, from the latest call.
    """
    out: list[Message] = []
    called: dict[str, str] = {}
    for entry in messages:
        if isinstance(entry, Message):
            out.append(entry)
        elif isinstance(entry, Mapping):
            for call in entry.get("tool_calls") or ():
                name = _function(call)["name"]
                if call.get("id") is not None:
                    called[str(call["id"])] = name
            out += Message.from_dict(_named(entry, called, out))
        else:
            raise ValueError(
                f"conversation: expected Message or dict entries, got {type(entry).__name__}; "
                'a single question is [{"role": "user", "content": text}]'
            )
    return out


def _named(entry: Mapping[str, Any], called: dict[str, str], out: list[Message]) -> dict[str, Any]:
    """Fill in a tool result's name from the calls before it."""
    if entry.get("role") != "tool" or entry.get("name"):
        return dict(entry)
    latest = next((m.recipient for m in reversed(out) if _is_call(m)), None)
    name = called.get(str(entry.get("tool_call_id")), latest)
    return {**entry, "name": name}


def _is_call(message: Message) -> bool:
    return message.role == "assistant" and message.recipient is not None


def _assistant(entry: Mapping[str, Any]) -> list[Message]:
    """Split an assistant's dict into analysis, calls and final answer.

    Content beside tool calls is analysis, as in the official template; when thinking is given too
    (the template refuses that) it is a preamble in the commentary channel.
    """
    thinking = next((entry[key] for key in THINKING_KEYS if entry.get(key)), None)
    content, calls = _text(entry.get("content")), entry.get("tool_calls") or ()
    out = []
    if thinking:
        out.append(Message("assistant", _text(thinking), "analysis"))
    if content and calls:
        out.append(Message("assistant", content, "commentary" if thinking else "analysis"))
    out += [_call(call) for call in calls]
    if not calls:
        out.append(Message("assistant", content, "final"))
    name = entry.get("name")
    return [replace(message, name=name) for message in out] if name else out


def _call(call: Any) -> Message:
    function = _function(call)
    arguments = function.get("arguments", {})
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    recipient = _full_name(function["name"])
    if _is_builtin(recipient):
        return Message("assistant", arguments, "analysis", recipient, "code")
    return Message("assistant", arguments, "commentary", recipient, "<|constrain|>json")


def _function(call: Any) -> Mapping[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not function.get("name"):
        raise ValueError(
            "Message.from_dict: expected a tool call such as "
            f'{{"function": {{"name": ..., "arguments": ...}}}}, got {call!r}'
        )
    return function


def _tool_result(content: str, entry: Mapping[str, Any]) -> Message:
    name = entry.get("name")
    if not name:
        raise ValueError(
            "Message.from_dict: expected a tool result to name its tool, got none; add "
            '"name", or pass the whole chat so that it follows its call'
        )
    name = _full_name(name)
    return Message(
        "tool",
        content,
        entry.get("channel") or ("analysis" if _is_builtin(name) else "commentary"),
        entry.get("recipient") or "assistant",
        entry.get("content_type"),
        name,
    )


def _full_name(name: str) -> str:
    """Put a bare function name into its namespace; built-in tools keep theirs."""
    return name if "." in name or _is_builtin(name) else f"{FUNCTIONS}.{name}"


def _is_builtin(name: str) -> bool:
    """Tell whether the model calls a tool inside its analysis (see `builtin`)."""
    return name.partition(".")[0] in ("browser", "python")


def _text(content: Any) -> str:
    """Read content given as text, as None, or as a list of text parts."""
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, Sequence) and all(isinstance(p, (str, Mapping)) for p in content):
        parts = [p if isinstance(p, str) else p.get("text") for p in content]
        if all(isinstance(part, str) for part in parts):
            return "".join(str(part) for part in parts)
    raise ValueError(
        "Message.from_dict: expected content to be text or a list of "
        f'{{"type": "text", "text": ...}}, got {content!r}'
    )
