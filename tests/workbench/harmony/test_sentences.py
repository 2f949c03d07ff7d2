"""Where sentences end, and where they do not."""

import random

import pytest

from gptoss_workbench.harmony.sentences import sentence_of_pieces, sentences

CASES = [
    ["One.", "Two!", "Three?", "Four…", "five"],
    ["It is 3.5 or 1,000.25.", "Then stop."],
    [
        "Use e.g. this, i.e. that, etc. and cf. Dr. Who vs. J.R.R. Tolkien in the U.S. today.",
        "End.",
    ],
    ["The answer is B.", "So we stop."],
    ["1. First item", "2. Second item."],
    ["Options:", "(a) one", "(b) two"],
    ['He said "no."', "Then (really!)", "left."],
    ["Wait...", "What?!", "Yes."],
    ["Hmm.\n\n", "New paragraph"],
    ["日本語です。", "次の文です！", "終わり？", "はい"],
    ["**Bold claim.**", "Next."],
    ["no end"],
    ["See file.txt and a.out.", "Done"],
]


@pytest.mark.parametrize("parts", CASES)
def test_sentences_end_where_a_reader_says(parts):
    joined = [p if p[0] > "⺀" or p.endswith("\n\n") else p + " " for p in parts]
    if parts[0][0] in "1O" and parts[-1][0] in "2(":
        joined = [p.rstrip() + "\n" for p in joined]
    got = sentences("".join(joined))
    assert [s.strip() for s in got] == [p.strip() for p in parts]
    assert "".join(got) == "".join(joined)


def test_white_space_alone_is_one_sentence():
    assert sentences(" \n\n ") == [" \n\n "] and sentences("") == []


def test_a_token_belongs_to_the_sentence_of_its_first_ink():
    pieces = ["One", ".", " Two", ".\n\n", "Th", "ree", "."]
    assert sentence_of_pieces(pieces) == [0, 0, 1, 1, 2, 2, 2]
    assert sentence_of_pieces(["One", ". ", "", "🦙"]) == [0, 0, 1, 1]
    assert sentence_of_pieces(["A. B. C. Deux. Trois"]) == [0]
    assert sentence_of_pieces([]) == []


@pytest.mark.parametrize("seed", range(30))
def test_any_text_is_cut_without_loss_and_the_same_again(seed):
    rng = random.Random(seed)
    alphabet = ["a", "B", "1", ".", "!", "?", "…", "。", "\n", " ", '"', ")", "e.g.", "\t"]
    text = "".join(rng.choices(alphabet, k=60))
    cut = sentences(text)
    assert "".join(cut) == text and all(cut) and sentences(text) == cut
    pieces, at = [], 0
    while at < len(text):
        step = rng.randint(0, 3)
        pieces.append(text[at : at + step])
        at += step
    numbers = sentence_of_pieces(pieces)
    assert numbers == sorted(numbers) and set(numbers) == set(range(max(numbers) + 1))
