"""How OpenAI-style dicts become messages."""

import pytest

from gptoss_workbench.harmony import Message, conversation

JSON = "<|constrain|>json"
CALL = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": {"q": "é"}}}


def test_thinking_becomes_analysis_and_content_final():
    entry = {"role": "assistant", "thinking": "Hm.", "content": "Yes."}
    assert Message.from_dict(entry) == [
        Message("assistant", "Hm.", "analysis"),
        Message("assistant", "Yes.", "final"),
    ]
    for key in ("reasoning_content", "reasoning"):
        renamed = {"role": "assistant", key: "Hm.", "content": "Yes."}
        assert Message.from_dict(renamed) == Message.from_dict(entry)


def test_every_tool_call_becomes_a_message():
    entry = {"role": "assistant", "thinking": "Hm.", "tool_calls": [CALL, CALL]}
    call = Message("assistant", '{"q": "é"}', "commentary", "functions.look_up", JSON)
    assert Message.from_dict(entry) == [Message("assistant", "Hm.", "analysis"), call, call]


def test_content_beside_calls_is_analysis_or_a_preamble():
    alone = Message.from_dict({"role": "assistant", "content": "Hm.", "tool_calls": [CALL]})
    assert alone[0] == Message("assistant", "Hm.", "analysis")
    both = {"role": "assistant", "content": "I look.", "thinking": "Hm.", "tool_calls": [CALL]}
    assert [(m.channel, m.content) for m in Message.from_dict(both)][:2] == [
        ("analysis", "Hm."),
        ("commentary", "I look."),
    ]


def test_arguments_given_as_text_stay_as_they_are():
    call = {"name": "python", "arguments": "print(1)"}
    (made,) = Message.from_dict({"role": "assistant", "tool_calls": [call]})
    assert made == Message("assistant", "print(1)", "analysis", "python", "code")


def test_a_tool_result_finds_its_name():
    def result(**more):
        return {"role": "tool", "content": "7", **more}

    other = {"id": "c2", "function": {"name": "other"}}
    calls = {"role": "assistant", "tool_calls": [CALL, other]}
    for entry, name in [
        (result(name="f"), "functions.f"),
        (result(tool_call_id="c1"), "functions.look_up"),
        (result(tool_call_id="unheard"), "functions.other"),
        (result(), "functions.other"),
    ]:
        assert conversation([calls, entry])[-1] == Message(
            "tool", "7", "commentary", "assistant", name=name
        )
    with pytest.raises(ValueError, match="name"):
        conversation([result()])


def test_results_of_built_in_tools_are_analysis():
    (made,) = conversation([{"role": "tool", "name": "browser.search", "content": "7"}])
    assert made == Message("tool", "7", "analysis", "assistant", name="browser.search")


def test_a_system_dict_is_the_developers():
    assert Message.from_dict({"role": "system", "content": "S"}) == [Message("developer", "S")]


def test_an_explicit_channel_is_taken_as_it_is():
    entry = {"role": "assistant", "channel": "analysis", "content": "Hm."}
    assert Message.from_dict(entry) == [Message("assistant", "Hm.", "analysis")]


def test_text_parts_are_joined():
    parts = [{"type": "text", "text": "a"}, "b"]
    assert Message.from_dict({"role": "user", "content": parts}) == [Message("user", "ab")]
    assert Message.from_dict({"role": "user", "content": None}) == [Message("user", "")]


def test_a_message_gives_its_dict_back():
    message = Message("assistant", "{}", "commentary", "functions.f", JSON)
    assert Message.from_dict(message.to_dict()) == [message]


def test_keys_that_hold_nothing_lose_nothing():
    empty = {"refusal": None, "annotations": [], "audio": None, "tool_calls": None}
    entry = {"role": "assistant", "content": "Yes.", **empty, "channel": None}
    assert Message.from_dict(entry) == [Message("assistant", "Yes.", "final")]
    assert Message.from_dict({**entry, "channel": "final"}) == Message.from_dict(entry)


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ({"role": "robot", "content": ""}, "robot"),
        ({"content": ""}, "role"),
        ({"role": "user", "content": [{"type": "image"}]}, "image"),
        ({"role": "user", "content": 7}, "7"),
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, "tool call"),
        ({"role": "assistant", "tool_calls": [7]}, "tool call"),
        ({"role": "user"}, "expected 'content' in a message of role 'user', got only 'role'"),
        ({"role": "assistant"}, "expected 'content' or one of thinking, .*tool_calls"),
        ({"role": "user", "content": "", "chanel": "final"}, "'chanel' cannot be .*channel, "),
        ({"role": "user", "content": "", "thinking": "Hm."}, "'thinking' cannot be kept in a"),
        ({"role": "user", "content": "", "tool_calls": [CALL]}, "'tool_calls' cannot be kept"),
        ({"role": "assistant", "content": "", "channel": "banana"}, "among .*got 'banana'"),
        (
            {"role": "assistant", "content": "", "channel": "final", "reasoning": "Hm."},
            "'reasoning' cannot be kept beside a channel",
        ),
        ({"role": "assistant", "thinking": "a", "reasoning": "b"}, "thinking and reasoning differ"),
    ],
)
def test_wrong_entries_are_named(entry, named):
    with pytest.raises(ValueError, match=named):
        Message.from_dict(entry)
