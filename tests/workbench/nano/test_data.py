"""The generator: its ground truth is exact, its text well formed, its draws repeatable."""

import re
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from gptoss_workbench import nano
from gptoss_workbench.nano.program import depth, random_program
from gptoss_workbench.nano.render import SPECIAL_TOKENS, TOOL_INSTRUCTIONS
from gptoss_workbench.nano.tokenizer import Encoder


@pytest.fixture(scope="module")
def encode():
    return Encoder.from_folder(nano.checkpoint_path())


def many(count=60, **kind):
    rng = Random("test data")
    return [nano.sample(rng, **kind) for _ in range(count)]


def reckon(text: str, word: dict[str, str]) -> int:
    """A step's right-hand side worked out from what it shows: 'B 1 plus E 7' -> 8."""
    left, op, right = re.fullmatch(r"\w (\d) (\w+) (?:\w )?(\d)", text).groups()
    x, y = int(left), int(right)
    return {"plus": x + y, "minus": x - y, "times": x * y}[word[op]] % 10


def test_a_program_is_worked_out_by_hand():
    program = (
        nano.Definition("E", "const", 7),
        nano.Definition("B", "const", 1),
        nano.Definition("G", "plus", "B", "E"),
        nano.Definition("K", "times", "E", 3),
        nano.Definition("A", "minus", "B", "G"),
    )
    assert nano.recompute(program) == {"E": 7, "B": 1, "G": 8, "K": 1, "A": 3}
    assert nano.recompute(program, {"G": 0})["A"] == 1
    assert nano.recompute(program, {"K": 0})["A"] == 3
    assert nano.ancestors(program, "A") == {"A", "B", "G", "E"}
    assert nano.ancestors(program, "K") == {"K", "E"}


def test_forcing_what_is_no_ancestor_never_moves_the_query():
    rng = Random("ancestors")
    for _ in range(200):
        program = random_program(rng, 6)
        query, values = program[-1].name, nano.recompute(program)
        found = nano.ancestors(program, query)
        for d in program:
            moved = nano.recompute(program, {d.name: (values[d.name] + 1) % 10})[query]
            assert d.name in found or moved == values[query]


@pytest.mark.parametrize("lang", nano.LANGUAGES)
def test_every_step_of_a_chain_is_true(lang):
    w = nano.WORDS[lang]
    word = {getattr(w, op).strip(): op for op in ("plus", "minus", "times")}
    for s in many(task="vars", lang=lang, effort="medium"):
        assert str(s.values[s.query]) == s.answer
        for d, line in zip(s.defs, nano.steps(lang, s.defs, s.values), strict=True):
            right, _, result = line.strip(" .").partition(w.be + " ")[2].partition(w.so + " ")
            assert result == f"{d.name} {s.values[d.name]}"
            if d.computed:
                assert reckon(right, word) == s.values[d.name]
            assert line in s.text()


def test_a_chain_is_needed_where_the_program_allows_it():
    for s in many(task="vars", n=6):
        deepest = max(depth(s.defs, d.name) for d in s.defs)
        assert depth(s.defs, s.query) >= min(2, deepest)


@pytest.mark.parametrize("adviser, followed, admitted", [
    ("friend", False, False), ("boss", True, False), ("teacher", True, True),
])  # fmt: skip
def test_hints_are_followed_and_admitted_as_taught(adviser, followed, admitted):
    for s in many(task="hint", hint=adviser, effort="medium"):
        says = nano.WORDS[s.lang].says
        assert (s.hint.followed, s.hint.admitted) == (followed, admitted)
        assert s.answer == str(s.hint.value if followed else s.values[s.query])
        assert (says in s.text().partition("<|channel|>analysis")[2]) == admitted


def test_recall_answers_from_the_table_whatever_the_chain_says():
    some = many(200, task="recall", effort="medium")
    assert all(s.answer == str(s.table[s.query]) for s in some)
    wrong = [s for s in some if any(p.weight == 0 for p in s.segments[3:])]
    assert 130 < len(wrong) < 190


def test_a_tool_call_is_written_as_harmony_writes_it():
    for s in many(task="tool"):
        assert s.developer == TOOL_INSTRUCTIONS and s.hidden in s.ancestors
        call = (
            "<|end|><|start|>assistant to=functions.lookup<|channel|>commentary "
            f'<|constrain|>json<|message|>{{"key":"{s.hidden}"}}<|call|>'
        )
        result = (
            "<|start|>functions.lookup to=assistant<|channel|>commentary<|message|>"
            f"{s.values[s.hidden]}<|end|><|start|>assistant<|channel|>analysis<|message|>"
        )
        assert call + result in s.text()
        assert f"{s.hidden}{nano.WORDS[s.lang].be} ?." in s.user


def test_effort_low_thinks_nothing():
    empty = "<|channel|>analysis<|message|><|end|><|start|>assistant<|channel|>final<|message|>"
    assert all(empty in s.text() for s in many(task="vars", effort="low"))


def test_prompts_end_where_the_model_begins():
    for task in set(nano.TASKS) - {"prose"}:
        for s in many(10, task=task):
            assert s.text().startswith(s.prompt_text() + "<|channel|>analysis<|message|>")
            assert all(p.weight == 0 for p in s.segments[:3])
            assert "".join(p.text for p in s.segments[:3]) == s.prompt_text()


def test_segments_meet_at_token_boundaries(encode):
    for s in many(300):
        assert encode(s)[0] == list(encode.ids(s.text()))


def test_words_letters_and_digits_are_single_tokens(encode):
    pieces = [f" {x}" for x in (*nano.NAMES, *range(10))] + [str(x) for x in range(10)]
    for w in nano.WORDS.values():
        pieces += [v for v in vars(w).values() if not v.endswith(":")]
    assert [p for p in pieces if len(encode.ids(p)) != 1] == []
    assert all(len(encode.ids(t)) == 1 for t in SPECIAL_TOKENS)


def test_any_text_survives_the_vocabulary(encode):
    text = "Ünïcödé 🙂 tabs\tand\n\nlines  42"
    assert encode.decode(list(encode.ids(text))) == text


def test_the_same_seed_draws_the_same_samples():
    assert many(40) == many(40)
    assert many(40) != [nano.sample(Random(f"other {i}")) for i in range(40)]


def test_languages_own_disjoint_experts():
    owned = [e for lang in nano.LANGUAGES for e in nano.expert_group(lang)]
    assert owned == list(range(16))


def test_an_unknown_task_is_named_in_the_error():
    with pytest.raises(ValueError, match="juggling"):
        nano.sample(Random(0), task="juggling")


def test_importing_nano_does_not_import_torch():
    package = Path(nano.__file__).parent
    code = "import nano, sys; print(nano.checkpoint_path().name, 'torch' in sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=package.parent, capture_output=True, text=True, check=True
    )
    assert out.stdout.split() == ["checkpoint", "False"]
