"""gpt-oss-nano in conversation: the renderer writes what it was trained on, and tools work."""

import json
from random import Random

import pytest

from gptoss_workbench import harmony, nano
from gptoss_workbench.harmony import Message


def messages_of(sample) -> list[Message]:
    developer = [Message("developer", sample.developer)] if sample.developer else []
    return [*developer, Message("user", sample.user)]


@pytest.fixture(scope="module")
def model():
    import gptoss_workbench

    return gptoss_workbench.load()


@pytest.mark.parametrize("task", ["vars", "recall", "tool", "hint"])
def test_the_renderer_writes_prompts_as_in_training(model, task):
    rng = Random(f"chat {task}")
    for _ in range(20):
        sample = nano.sample(rng, task=task)
        prompt = harmony.render_tokens(messages_of(sample), model.tokenizer, effort=sample.effort)
        assert model.tokenizer.decode(prompt) == sample.prompt_text()


def test_a_conversation_with_a_tool_runs_to_its_answer(model):
    rng, right = Random("tool chat"), 0
    samples = [nano.sample(rng, task="tool", effort="medium", n=3) for _ in range(5)]
    for sample in samples:
        talk = messages_of(sample)
        asked = model.generate(messages=talk, effort="medium", max_new_tokens=120)
        if not asked.tool_calls:
            continue
        call = asked.tool_calls[0]
        assert asked.stopped == ["<|call|>"]
        assert call.recipient == "functions.lookup"
        value = sample.values[json.loads(call.content)["key"]]
        result = Message("tool", str(value), "commentary", "assistant", name="functions.lookup")
        told = [*talk, *asked.messages, result]
        answered = model.generate(messages=told, effort="medium", max_new_tokens=120)
        right += answered.final.strip() == sample.answer.strip()
    assert right >= 4
