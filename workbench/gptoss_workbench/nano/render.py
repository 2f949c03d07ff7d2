"""How a sample is written down: harmony messages, and the sentences of a chain of thought.

prompt      <|start|>system<|message|>Reasoning: medium<|end|>[developer]<|start|>user<|message|>...
            <|end|><|start|>assistant
completion  <|channel|>analysis<|message|>...<|end|><|start|>assistant
            <|channel|>final<|message|>8<|return|>
tool call   <|end|><|start|>assistant to=functions.lookup<|channel|>commentary <|constrain|>json
            <|message|>{"key":"E"}<|call|>                                 (one line; the turn ends)
result      <|start|>functions.lookup to=assistant<|channel|>commentary<|message|>7<|end|>
            <|start|>assistant                                                  (then the model)
"""

from collections.abc import Mapping, Sequence

from .language import WORDS
from .program import Definition

SPECIAL_TOKENS = (
    "<|startoftext|>", "<|endoftext|>", "<|return|>", "<|constrain|>", "<|channel|>",
    "<|start|>", "<|end|>", "<|message|>", "<|call|>",
)  # fmt: skip
EFFORTS = ("low", "medium", "high")
TOOL_INSTRUCTIONS = "# Instructions\n\nUse functions.lookup."
"""The developer message that announces the tool."""

ASSISTANT = "<|start|>assistant"
ANALYSIS = "<|channel|>analysis<|message|>"
TO_ANALYSIS = "<|end|>" + ASSISTANT + ANALYSIS
TO_FINAL = "<|end|>" + ASSISTANT + "<|channel|>final<|message|>"


def head(effort: str, developer: str | None = None) -> str:
    """Everything before the user's words."""
    middle = f"<|start|>developer<|message|>{developer}<|end|>" if developer else ""
    return f"<|start|>system<|message|>Reasoning: {effort}<|end|>{middle}<|start|>user<|message|>"


def tool_call(key: str) -> str:
    """From the end of the analysis to the call token, where the model stops."""
    return (
        f"<|end|>{ASSISTANT} to=functions.lookup<|channel|>commentary <|constrain|>json"
        f'<|message|>{{"key":"{key}"}}<|call|>'
    )


def tool_result(value: int) -> str:
    """The tool's answer and the start of the model's next message."""
    return (
        "<|start|>functions.lookup to=assistant<|channel|>commentary"
        f"<|message|>{value}<|end|>{ASSISTANT}"
    )


def prompt_sentence(lang: str, d: Definition) -> str:
    """A definition as the user gives it: ' G is B plus E.', ' E is 7.', or hidden: ' E is ?.'"""
    w = WORDS[lang]
    if not d.computed:
        return f" {d.name}{w.be} {'?' if d.op == 'lookup' else d.left}."
    return f" {d.name}{w.be} {d.left}{getattr(w, d.op)} {d.right}."


def sentence(lang: str, d: Definition, values: Mapping[str, int], shown: int | None = None) -> str:
    """A step of the chain of thought, without its full stop: ' G is B 1 plus E 7 so G 8'.

    `shown` replaces the value the step arrives at (its last token): a planted mistake.
    """
    w, value = WORDS[lang], values[d.name] if shown is None else shown
    if not d.computed:
        return f" {d.name}{w.be} {d.left}{w.so} {d.name} {value}"
    left = f" {d.left} {values[str(d.left)]}"
    right = f" {d.right} {values[d.right]}" if isinstance(d.right, str) else f" {d.right}"
    return f" {d.name}{w.be}{left}{getattr(w, d.op)}{right}{w.so} {d.name} {value}"


def steps(
    lang: str,
    defs: Sequence[Definition],
    values: Mapping[str, int],
    shown: Mapping[str, int] | None = None,
) -> list[str]:
    """The sentences of a chain of thought, one per definition, each with its full stop."""
    shown = shown or {}
    return [sentence(lang, d, values, shown.get(d.name)) + "." for d in defs]


def conclusion(lang: str, query: str, value: int) -> str:
    """The last sentence of the steps: ' so G 8.'"""
    return f"{WORDS[lang].so} {query} {value}."
