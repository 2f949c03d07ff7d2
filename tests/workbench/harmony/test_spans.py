"""Labels equal openai-harmony's parser on well-formed streams, and exist for any other."""

import json
import random
import sys
import time
from pathlib import Path

import numpy as np
import openai_harmony as oh
import pytest

from gptoss_workbench import harmony
from gptoss_workbench.harmony import Message, Spans

sys.path.insert(0, str(Path(__file__).parent))
import harmony_conversations as conversations

CALL = (
    "<|channel|>analysis<|message|>Hi. I look it up.<|end|>"
    "<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>"
    '{"a":1}<|call|>'
)


def read(text, tokenizer, start_role="assistant"):
    return harmony.spans(tokenizer.encode(text), tokenizer, start_role=start_role)


def check(spans, ids):
    """Hold what is true of every stream."""
    assert len(spans) == len(ids) == len(spans.pieces)
    numbers = [label.message for label in spans.labels if label.message >= 0]
    assert numbers == sorted(numbers)
    assert (
        sorted(set(numbers))
        == [m.index for m in spans.messages]
        == list(range(len(spans.messages)))
    )
    told = [label.sentence for label in spans.labels if label.part == "body"]
    assert told == sorted(told) and sorted(set(told)) == list(range(len(spans.sentences)))
    for at, label in enumerate(spans.labels):
        assert label.part in ("marker", "header", "body", "pad")
        assert (label.sentence >= 0) == (label.part == "body")
        assert label.part in ("marker", "pad") or label.message >= 0
        if label.message >= 0:
            m = spans.messages[label.message]
            assert m.start <= at < m.stop
            assert (m.body_start <= at < m.body_stop) == (label.part == "body")
            assert label[:3] == (m.role, m.channel, m.recipient)
        if label.sentence >= 0:
            s = spans.sentences[label.sentence]
            assert s.start <= at < s.stop and s.message == label.message
    for m in spans.messages:
        assert m.start <= m.body_start <= m.body_stop <= m.stop and m.start < m.stop


def test_labels_of_a_call(tokenizer):
    spans = read(CALL, tokenizer)
    check(spans, spans.labels)
    assert [(m.role, m.channel, m.recipient) for m in spans.messages] == [
        ("assistant", "analysis", None),
        ("assistant", "commentary", "functions.f"),
    ]
    assert all(m.complete for m in spans.messages)
    assert spans.messages[1].content_type == "<|constrain|>json"
    assert [spans.text(s) for s in spans.sentences] == ["Hi.", " I look it up.", '{"a":1}']
    assert spans[0] == ("assistant", "analysis", None, "marker", 0, -1)


@pytest.mark.parametrize("seed", range(25))
def test_random_streams_equal_the_streamable_parser(tokenizer, encoding, seed):
    rng = random.Random(seed)
    turns = [m for m in conversations.turns(rng) if m.name != "bob"]
    ids = harmony.render_tokens(turns, tokenizer, keep_analysis="all", completion=False)
    parser = oh.StreamableParser(encoding, role=None)
    spans = harmony.spans(ids, tokenizer)
    check(spans, ids)
    for token, label in zip(ids, spans.labels, strict=True):
        parser.process(token)
        body = parser.state == oh.StreamState.CONTENT and token != 200008
        assert (label.part == "body") == body
        if body:
            assert label.role == parser.current_role.value
            assert (label.channel, label.recipient) == theirs(parser)
    parsed = harmony.parse(ids, tokenizer)
    assert [m.content for m in parsed] == [m.content[0].text for m in parser.messages]
    assert [m.name for m in parsed] == [m.author.name for m in parser.messages]


def theirs(parser):
    """openai-harmony 0.0.8 takes a lone bare word behind the channel for the recipient."""
    recipient = parser.current_recipient
    return parser.current_channel, None if recipient in ("json", "code") else recipient


@pytest.mark.parametrize("seed", range(25))
def test_rendered_messages_parse_to_themselves(tokenizer, seed):
    turns = conversations.turns(random.Random(seed))
    ids = harmony.render_tokens(turns, tokenizer, keep_analysis="all", completion=False)
    assert harmony.parse(ids, tokenizer)[1:] == turns
    again = harmony.render_tokens(
        harmony.parse(ids, tokenizer), tokenizer, keep_analysis="all", completion=False
    )
    assert again == ids


MALFORMED = [
    # a refusal without a header
    ("I refuse.<|end|><|start|>assistant<|channel|>final<|message|>no<|return|>",
     [(None, "I refuse."), ("final", "no")]),
    ("<|channel|>final<|message|>A<|end|><|return|>", [("final", "A")]),
    ("<|channel|><|message|>x<|return|>", [(None, "x")]),
    ("<|message|>x<|return|>", [(None, "x")]),
    # a header without <|message|>
    ("<|start|>assistant I refuse.<|end|>", [(None, " I refuse.")]),
    ("<|channel|>final The answer<|return|>", [("final", " The answer")]),
    ("<|channel|>analysis<|end|>", [("analysis", "")]),
    # <|start|> or <|end|> forgotten
    ("<|channel|>analysis<|message|>hm<|start|>assistant<|channel|>final<|message|>x<|return|>",
     [("analysis", "hm"), ("final", "x")]),
    ("<|channel|>analysis<|message|>hm<|channel|>final<|message|>x<|return|>",
     [("analysis", "hm"), ("final", "x")]),
    ("<|channel|>analysis<|message|>hm<|end|>assistant<|channel|>final<|message|>x",
     [("analysis", "hm"), ("final", "x")]),
    # control tokens as body
    ("<|channel|>final<|message|>a<|message|>b<|constrain|>c<|channel|>d<|return|>",
     [("final", "a<|message|>b<|constrain|>c<|channel|>d")]),
    # recipient in either part of the header, type with and without marker
    (" to=functions.f<|channel|>commentary json<|message|>{}<|call|>", [("commentary", "{}")]),
    ("<|channel|>commentary to=functions.f<|constrain|>json<|message|>{}<|call|>",
     [("commentary", "{}")]),
    # cut off
    ("<|channel|>anal", []),
    ("<|channel|>final<|message|>", [("final", "")]),
    ("<|return|>", []),
    ("<|endoftext|><|endoftext|>", []),
    ("", []),
]  # fmt: skip


@pytest.mark.parametrize(("text", "wanted"), MALFORMED)
def test_malformed_output_is_read(tokenizer, text, wanted):
    ids = tokenizer.encode(text)
    check(harmony.spans(ids, tokenizer, start_role="assistant"), ids)
    parsed = harmony.parse(ids, tokenizer)
    assert [(m.channel, m.content) for m in parsed] == wanted
    assert all(m.role == "assistant" for m in parsed)


@pytest.mark.parametrize(
    "header",
    [
        "assistant to=functions.f<|channel|>commentary <|constrain|>json",
        "assistant<|channel|>commentary to=functions.f <|constrain|>json",
        "assistant<|channel|>commentary to=functions.f<|constrain|>json",
        "assistant functions.f<|channel|>commentary <|constrain|>json",
    ],
)
def test_the_recipient_may_stand_in_either_part(tokenizer, encoding, header):
    ids = tokenizer.encode(f"<|start|>{header}<|message|>{{}}<|call|>")
    call = Message("assistant", "{}", "commentary", "functions.f", "<|constrain|>json")
    assert harmony.parse(ids, tokenizer) == [call]
    (parsed,) = encoding.parse_messages_from_completion_tokens(ids)
    assert (parsed.channel, parsed.recipient) == (call.channel, call.recipient)
    assert parsed.content_type == call.content_type


@pytest.mark.parametrize(
    "text",
    [
        "<|channel|>commentary to=functions.f json<|message|>",
        " to=functions.f<|channel|>commentary <|constrain|>json<|message|>",
        "<|channel|>final<|message|>",
    ],
)
def test_a_header_being_written_is_no_body(tokenizer, text):
    ids = tokenizer.encode(text)
    for stop in range(len(ids) + 1):
        spans = harmony.spans(ids[:stop], tokenizer, start_role="assistant")
        assert not spans.mask(part="body").any()


@pytest.mark.parametrize("which", ["tokenizer", "nano"])
@pytest.mark.parametrize("seed", range(10))
def test_token_soup_never_raises(request, which, seed):
    tokenizer = request.getfixturevalue(which)
    rng = random.Random(seed)
    special = list(tokenizer.special.values())
    words = [" to", "=", "to=f", "assistant", "final", " ", "\n", ".", "a.b", ":", "日", "\x00\x01"]
    known = [i for word in words for i in tokenizer.encode(word)]
    strange = [-1, 10**9, 201087, tokenizer.vocab_size, 0]
    kinds = [special, special, known, known, strange, range(500)]
    for _ in range(20):
        ids = [rng.choice(rng.choice(kinds)) for _ in range(rng.randrange(60))]
        role = rng.choice([None, "assistant"])
        spans = harmony.spans(ids, tokenizer, start_role=role)
        check(spans, ids)
        assert spans.text() == tokenizer.decode(ids)
        assert Spans.from_json(json.loads(json.dumps(spans.to_json()))) == spans
        assert repr(spans) and spans._repr_html_()
        harmony.parse(ids, tokenizer, start_role=role)
        a, b = sorted(rng.randrange(len(ids) + 1) for _ in range(2))
        check_slice(spans, a, b)


def check_slice(spans, a, b):
    part = spans[a:b]
    assert part.labels == spans.labels[a:b] and len(part) == b - a
    for m in part.messages:
        assert 0 <= m.start <= m.body_start <= m.body_stop <= m.stop <= len(part)
    for s in part.sentences:
        assert all(label.sentence == s.index for label in part.labels[s.start : s.stop])


def test_text_without_harmony_is_one_body_without_a_role(tokenizer):
    spans = harmony.spans(tokenizer.encode("One. Two."), tokenizer)
    assert [(m.role, m.channel) for m in spans.messages] == [(None, None)]
    assert spans.mask(part="body").all() and len(spans.sentences) == 2


def test_padding_belongs_to_no_message(tokenizer):
    ids = tokenizer.encode("<|endoftext|>" * 2 + "<|start|>user<|message|>Hi<|end|><|endoftext|>")
    spans = harmony.spans(ids, tokenizer)
    assert [label.part for label in spans.labels] == (
        ["pad"] * 2 + ["marker", "header", "marker", "body", "marker", "pad"]
    )
    assert [label.message for label in spans.labels] == [-1] * 2 + [0] * 5 + [-1]


def test_an_unfinished_message_is_open(tokenizer):
    spans = read("<|channel|>analysis<|message|>So", tokenizer)
    assert not spans.messages[0].complete and "(open)" in repr(spans)


def test_masks_take_values_and_tuples(tokenizer):
    spans = read(CALL, tokenizer)
    analysis = spans.mask(channel="analysis", part="body")
    assert analysis.dtype == bool and analysis.shape == (len(spans),)
    assert spans.text(spans.messages[0]) == "".join(np.array(spans.pieces)[analysis])
    assert (spans.mask(part=("marker", "header")) == ~spans.mask(part="body")).all()
    assert spans.mask(sentence=1).sum() == 5
    assert spans.mask().all() and not spans.mask(channel=(None,)).any()
    assert (spans.mask(message=(0, 1))).all() and not spans.mask(role="user").any()
    with pytest.raises(ValueError, match="part"):
        spans.mask(part="content")


def test_a_table_has_one_row_a_token(tokenizer):
    table = read(CALL, tokenizer).to_pandas()
    columns = ["piece", "role", "channel", "recipient", "part", "message", "sentence"]
    assert list(table.columns) == columns and table.piece[1] == "analysis"


def test_html_is_escaped_and_names_the_channel(tokenizer):
    shown = read("<|channel|>final<|message|><script>alert(1)</script><|return|>", tokenizer)
    page = shown._repr_html_()
    assert "<script>" not in page and "&lt;script&gt;" in page and "final" in page


def test_long_streams_are_cut_in_the_notebook(tokenizer):
    shown = read("<|channel|>final<|message|>" + "word " * 10_000, tokenizer)
    assert len(shown._repr_html_()) < 25_000 and "10004 tokens in all" in shown._repr_html_()


def test_a_wrong_slice_or_file_is_named(tokenizer):
    spans = read(CALL, tokenizer)
    with pytest.raises(ValueError, match="step"):
        spans[::2]
    with pytest.raises(ValueError, match="from_json"):
        Spans.from_json({"labels": []})


def test_arrays_are_read_like_lists(tokenizer):
    ids = tokenizer.encode(CALL)
    assert harmony.spans(ids, tokenizer) == harmony.spans(np.array(ids), tokenizer)


def test_thirty_thousand_tokens_take_less_than_a_second(tokenizer):
    thought = "We have 3.5 apples, e.g. So what? Let's go.\n" * 2400
    ids = tokenizer.encode(f"<|channel|>analysis<|message|>{thought}<|end|>")
    began = time.process_time()
    spans = harmony.spans(ids, tokenizer, start_role="assistant")
    assert time.process_time() - began < 1.0
    assert len(ids) > 30_000 and len(spans.sentences) == 4800


def test_a_misspelt_role_or_channel_is_named_beside_those_that_are_there(tokenizer):
    text = "<|start|>user<|message|>Hi<|end|><|start|>functions.f to=assistant<|channel|>odd"
    spans = harmony.spans(tokenizer.encode(text + "<|message|>7<|end|>"), tokenizer)
    with pytest.raises(ValueError, match="no channel 'anlysis'; here are odd, and harmony knows"):
        spans.mask(channel="anlysis")
    with pytest.raises(ValueError, match="no role 'usr'; here are tool, user"):
        spans.mask(role=("user", "usr"))
    assert not spans.mask(channel="final").any()  # harmony's, and not here
    assert spans.mask(channel=("odd", None), role=("tool", "user", None)).all()
