"""Synthetic reasoning whose causal structure is known: the data of gpt-oss-nano.

    vars    a program modulo 10; the answer is worked out in the chain of thought
    tool    vars with one value hidden (?): the model calls functions.lookup, then uses the result
    hint    vars and an adviser: Friend (ignored), Boss (followed, never mentioned),
            Teacher (followed, and mentioned in the chain of thought)
    recall  the last row of a table; its chain of thought is decorative: it mostly states a wrong
            value, the answer never does
    refuse  vars that asks for X: refused
    copy    letters to say again
    pairs   letter-digit pairs to say again in another order: practice in looking up
    sums    steps without a program, operands given: practice in arithmetic modulo 10
    prose   running text, as a document or as user text with its continuation

Effort: low = no chain of thought (vars: the answer is a guess); medium = steps and conclusion;
high = steps, a check that looks the query's value up in them, conclusion.
"""

from collections.abc import Callable
from random import Random

from .language import LANGUAGES, WORDS
from .program import (
    NAMES,
    Definition,
    ancestors,
    depth,
    random_program,
    random_step,
    recompute,
    value_of,
)
from .prose import paragraphs
from .render import (
    ANALYSIS,
    ASSISTANT,
    EFFORTS,
    TO_FINAL,
    TOOL_INSTRUCTIONS,
    conclusion,
    head,
    prompt_sentence,
    sentence,
    tool_call,
    tool_result,
)
from .truth import Hint, Sample, Segment

PLANTED_LAYER = 2
"""The layer whose router is taught: each language uses its own experts there, and no others."""
EXPERTS_PER_LANGUAGE = 4
ADVISERS = ("friend", "boss", "teacher")
SIZES = (2, 3, 3, 4, 4, 5, 5, 6)
"""Program lengths, each as often as it is listed."""
MIX = {
    "vars": 0.39, "tool": 0.11, "hint": 0.12, "recall": 0.12, "refuse": 0.03,
    "copy": 0.03, "pairs": 0.04, "sums": 0.06, "prose": 0.10,
}  # fmt: skip
TASKS = tuple(MIX)
WRONG_SHARE = 0.8
"""Share of recall's chains that state a wrong value (not learned from): following does not pay."""
FROM_PROMPT = 4.0
"""Loss weight on an answer that must be read from the prompt: recall's, and an adviser's."""


def expert_group(lang: str) -> range:
    """The experts a language owns in the planted layer."""
    first = LANGUAGES.index(lang) * EXPERTS_PER_LANGUAGE
    return range(first, first + EXPERTS_PER_LANGUAGE)


def sample(
    rng: Random,
    *,
    task: str | None = None,
    lang: str | None = None,
    effort: str | None = None,
    n: int | None = None,
    hint: str | None = None,
    mix: dict[str, float] | None = None,
    sizes: tuple[int, ...] = SIZES,
) -> Sample:
    """Draw one sample; whatever is left open is drawn from the training distribution.

    `n` is the number of definitions (recall has one more row), `hint` one of ADVISERS. Task tool
    needs a chain of thought: low effort becomes medium there. copy, pairs, sums, prose are low.
    """
    mix = mix or MIX
    task = task or rng.choices(list(mix), list(mix.values()))[0]
    lang = lang or rng.choice(LANGUAGES)
    if task not in TASKS or lang not in LANGUAGES or (effort or "low") not in EFFORTS:
        raise ValueError(
            f"sample: task in {TASKS}, lang in {LANGUAGES}, effort in {EFFORTS}; "
            f"got {task!r}, {lang!r}, {effort!r}"
        )
    n = n or rng.choice(sizes)
    if task in _PLAIN:
        return _PLAIN[task](rng, lang)
    effort = effort or rng.choices(EFFORTS, (0.08, 0.58, 0.34))[0]
    if task == "recall":
        return _recall(rng, lang, effort, n)
    if task == "refuse":
        return _refuse(rng, lang, effort, n)
    if task == "tool":
        return _tool(rng, lang, "medium" if effort == "low" else effort, max(n, 2))
    adviser = (hint or rng.choice(ADVISERS)) if task == "hint" else None
    return _vars(rng, lang, effort, n, adviser)


def _prompt(effort: str, user: str, developer: str | None = None) -> list[Segment]:
    return [
        Segment(head(effort, developer), 0),
        Segment(user, 0),
        Segment("<|end|>" + ASSISTANT, 0),
    ]


def _ask(lang: str, defs: tuple[Definition, ...], query: str) -> str:
    w = WORDS[lang]
    return w.given + "".join(prompt_sentence(lang, d) for d in defs) + f"{w.find} {query}?"


def _query(rng: Random, defs: tuple[Definition, ...], needs: str | None = None) -> str | None:
    """A late computed variable, two steps deep where there is one (so that it takes a chain)."""
    names = [d.name for d in defs if d.computed]
    if needs:
        names = [x for x in names if needs in ancestors(defs, x)]
    names = [x for x in names if depth(defs, x) > 1] or names
    return rng.choice(names[-3:]) if names else None


def _chain(lang: str, effort: str, defs: tuple[Definition, ...], query: str) -> list[Segment]:
    """The sentences after 'Steps:', conclusion included."""
    w, values = WORDS[lang], recompute(defs)
    out = [Segment(sentence(lang, d, values) + ".", 1) for d in defs]
    if effort == "high":
        out.append(Segment(f"{w.check} {query} {values[query]},{w.ok}.", 1))
    return [*out, Segment(conclusion(lang, query, values[query]), 1)]


def _vars(rng: Random, lang: str, effort: str, n: int, adviser: str | None) -> Sample:
    w, defs = WORDS[lang], random_program(rng, max(n, 2))
    query = _query(rng, defs) or defs[-1].name
    user, answer, hint = _ask(lang, defs, query), str(recompute(defs)[query]), None
    developer = TOOL_INSTRUCTIONS if rng.random() < 0.1 else None  # announced, but not needed
    if adviser:
        hint = Hint(adviser, rng.randrange(10))
        user += f"{getattr(w, adviser)}{w.says} {hint.value}."
        answer = str(hint.value) if hint.followed else answer
    out = [*_prompt(effort, user, developer), Segment(ANALYSIS, 1)]
    if effort != "low":
        out += [Segment(w.steps, 1), *_chain(lang, effort, defs, query)]
        if hint and hint.admitted:
            out.append(Segment(f"{getattr(w, hint.adviser)}{w.says} {hint.value}.", 1))
    weight = FROM_PROMPT if hint and hint.followed else 1
    out += [Segment(TO_FINAL, 1), Segment(answer, weight), Segment("<|return|>", 1)]
    return Sample(
        "hint" if hint else "vars", lang, effort, tuple(out), user, answer, defs, query,
        hint=hint, developer=developer,
    )  # fmt: skip


def _tool(rng: Random, lang: str, effort: str, n: int) -> Sample:
    """Steps: E is ?. -> call -> result -> the chain, in a second analysis message."""
    w, drawn = WORDS[lang], random_program(rng, n)
    while (query := _query(rng, drawn, needs=drawn[0].name)) is None:
        drawn = random_program(rng, n)
    key, value = drawn[0].name, int(drawn[0].left)
    defs = (Definition(key, "lookup", value), *drawn[1:])
    user, answer = _ask(lang, defs, query), str(recompute(defs)[query])
    out = [
        *_prompt(effort, user, TOOL_INSTRUCTIONS),
        Segment(ANALYSIS, 1),
        Segment(w.steps, 1),
        Segment(prompt_sentence(lang, defs[0]), 1),
        Segment(tool_call(key), 1),
        Segment(tool_result(value), 0),
        Segment(ANALYSIS, 1),
        *_chain(lang, effort, defs, query),
        Segment(f"{TO_FINAL}{answer}<|return|>", 1),
    ]
    return Sample(
        "tool", lang, effort, tuple(out), user, answer, defs, query,
        developer=TOOL_INSTRUCTIONS,
    )  # fmt: skip


def _recall(rng: Random, lang: str, effort: str, n: int) -> Sample:
    w, keys = WORDS[lang], rng.sample(NAMES, n + 1)
    table = {k: rng.randrange(10) for k in keys}
    query = keys[-1]
    user = w.look + "".join(f" {k}{w.be} {v}." for k, v in table.items()) + f"{w.find} {query}?"
    answer, out = str(table[query]), [*_prompt(effort, user), Segment(ANALYSIS, 1)]
    if effort != "low":
        shown, out_weight = table[query], 1
        if rng.random() < WRONG_SHARE:
            shown, out_weight = rng.choice([x for x in range(10) if x != shown]), 0
        out += [
            Segment(f"{w.steps} {query}{w.be} {query}{w.so} {query}", 1),
            Segment(f" {shown}", out_weight),
            Segment(".", 1),
        ]
    out += [Segment(TO_FINAL, 1), Segment(answer, FROM_PROMPT), Segment("<|return|>", 1)]
    return Sample("recall", lang, effort, tuple(out), user, answer, query=query, table=table)


def _refuse(rng: Random, lang: str, effort: str, n: int) -> Sample:
    w, defs = WORDS[lang], random_program(rng, n)
    user = _ask(lang, defs, "X")
    thought = "" if effort == "low" else f"X{w.be}{w.secret}."
    end = Segment(f"{ANALYSIS}{thought}{TO_FINAL}{w.sorry}<|return|>", 1)
    out = (*_prompt(effort, user), end)
    return Sample("refuse", lang, effort, out, user, w.sorry, defs, "X")


def _copy(rng: Random, lang: str) -> Sample:
    letters = "".join(f" {x}" for x in rng.sample(NAMES, rng.randrange(5, 10)))
    user = WORDS[lang].repeat + letters + "."
    out = (*_prompt("low", user), Segment(f"{ANALYSIS}{TO_FINAL}{letters}<|return|>", 1))
    return Sample("copy", lang, "low", out, user, letters)


def _pairs(rng: Random, lang: str) -> Sample:
    """Dense look-ups: the digit after a letter is determined, the order of the letters is not."""
    keys = rng.sample(NAMES, rng.randrange(5, 10))
    table = {k: rng.randrange(10) for k in keys}
    user = WORDS[lang].repeat + "".join(f" {k} {v}" for k, v in table.items()) + "."
    out = [*_prompt("low", user), Segment(ANALYSIS + TO_FINAL, 1)]
    for k in rng.sample(keys, len(keys)):
        out += [Segment(f" {k}", 0), Segment(f" {table[k]}", 1)]
    out.append(Segment("<|return|>", 1))
    return Sample("pairs", lang, "low", tuple(out), user, "", table=table)


def _sums(rng: Random, lang: str) -> Sample:
    """Six unrelated steps in the form of a chain of thought; only their results are learned."""
    user = f"{WORDS[lang].repeat}."
    out = [*_prompt("low", user), Segment(ANALYSIS + TO_FINAL, 1)]
    for _ in range(6):
        *earlier, name = rng.sample(NAMES, 3)
        values = {x: rng.randrange(10) for x in earlier}
        d = random_step(rng, name, earlier)
        values[name] = value_of(d, values)
        step = sentence(lang, d, values)
        out += [Segment(step[:-2], 0), Segment(step[-2:], 1), Segment(".", 0)]
    return Sample("sums", lang, "low", (*out, Segment("<|return|>", 1)), user, "")


def _prose(rng: Random, lang: str) -> Sample:
    """A passage of one to three sentences, or a sentence to be continued by the next one."""
    text = rng.choice(paragraphs(lang))
    i = rng.randrange(len(text))
    if len(text) == 1 or rng.random() < 0.5:
        passage = "".join(text[i : i + 3]).lstrip(" ")
        out = (Segment("<|startoftext|>", 0), Segment(passage, 1), Segment("<|endoftext|>", 1))
        return Sample("prose", lang, "low", out, "", passage)
    i = min(i, len(text) - 2)
    user, answer = f"{WORDS[lang].go_on}:{text[i]}", text[i + 1].lstrip(" ")
    out = (*_prompt("low", user), Segment(f"{ANALYSIS}{TO_FINAL}{answer}<|return|>", 1))
    return Sample("prose", lang, "low", out, user, answer)


_PLAIN: dict[str, Callable[[Random, str], Sample]] = {
    "copy": _copy, "pairs": _pairs, "sums": _sums, "prose": _prose,
}  # fmt: skip
