"""Generation: what was written, by channel, whatever the prompt left open; rows one by one."""

import pytest

from gptoss_workbench.generation import Generation
from gptoss_workbench.harmony import Message

ASKED = "<|start|>user<|message|>Sum?<|end|><|start|>assistant"
THOUGHT = "<|channel|>analysis<|message|>so G 8."
ANSWERED = "<|end|><|start|>assistant<|channel|>final<|message|>8<|return|>"


@pytest.fixture
def written(nano):
    """written((prompt, completion), ...): a Generation of these texts."""
    encode = nano.tokenizer.encode

    def make(*rows, stopped="<|return|>"):
        prompts, completions = zip(*[map(encode, row) for row in rows], strict=True)
        ends = [stopped] * len(rows)
        return Generation(list(prompts), list(completions), ends, 0, None, nano.tokenizer)

    return make


def test_a_continued_chain_of_thought_is_still_analysis(written):
    whole = written((ASKED, THOUGHT + ANSWERED))
    tokens = whole.prompts[0] + whole.completions[0]
    start, stop = len(whole.prompts[0]), len(tokens)
    before = whole.tokenizer.decode(tokens[:start])
    for border in range(start, stop + 1):
        part = Generation([tokens[:border]], [tokens[border:]], ["x"], 0, None, whole.tokenizer)
        text = whole.tokenizer.decode(tokens[border:])
        body = (before + THOUGHT).find("so G 8.")
        done = len(whole.tokenizer.decode(tokens[:border]))
        assert part.analysis == "so G 8."[max(0, done - body) :], text
        assert part.final == ("8" if "8<|return|>" in text else ""), text
        assert all(m.role == "assistant" and m.channel for m in part.messages), text


def test_messages_of_the_prompt_are_not_what_was_written(written):
    row = written((ASKED + THOUGHT + "<|end|>", "<|start|>assistant<|channel|>final<|message|>8"))
    assert row.messages == [Message("assistant", "8", "final")]
    closed = written((ASKED + THOUGHT, "<|end|>"))
    assert closed.messages == []


def test_a_bare_prompt_s_continuation_is_the_assistant_s_text(written):
    assert written(("B is 1. ", "G is B 1.")).messages == [Message("assistant", "G is B 1.")]


def test_a_row_of_a_batch_is_a_generation_of_its_own(written):
    batch = written((ASKED, THOUGHT + ANSWERED), (ASKED, THOUGHT.replace("8", "9")))
    assert batch.final == "8" and batch.analysis == "so G 8."
    assert len(batch) == 2 and [row.analysis for row in batch] == ["so G 8.", "so G 9."]
    assert batch[-1].completions == batch.completions[1:] and batch[1].final == ""
    assert batch[:1].prompts == batch.prompts[:1] and batch[0].stopped == batch.stopped[:1]
    with pytest.raises(IndexError, match="expected a row of 2, got 2"):
        batch[2]
