"""Messages to harmony text and tokens.

    render([{"role": "user", "content": "What is 2 + 2?"}], date="2025-06-28")
    render_tokens(messages, tokenizer, tools=[...], effort="high")

A message is `<|start|>{header}<|message|>{content}<|end|>`, its header
`role[:name][ to=recipient][<|channel|>channel][ type]`; a call ends with <|call|>. The text is that
of openai-harmony 0.0.8 and of the chat template in the released checkpoints where the two agree.
Where they differ, this module does as openai-harmony unless the third column says otherwise:

==================  ==========================  ==========================  ======================
matter              chat template               openai-harmony              here
==================  ==========================  ==========================  ======================
analysis of turns   dropped once a final        dropped only before the     as the template; see
gone by             message follows             first final message         `keep_analysis`
developer text      two newlines behind it      nothing behind it
type of a call      `json`                      `<|constrain|>json`
tool results        JSON-encoded once more      as given
nested tool types   on one line                 indented
default of a tool   `, // default: 1,`          `, // default: 1`
parameter
calls in one dict   the first                   (takes no dicts)            each, a message apiece
<|...|> in content  refused or a control token  plain text in tokens
current date        today                       left out unless given
user's name         left out                    `user:name`
==================  ==========================  ==========================  ======================

Content never makes control tokens: `render_tokens` encodes everything between the markers as plain
text. Its ids differ from those of `render`'s text only where a message quotes a special token, or
where two neighbouring plain pieces of a header would merge.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from gptoss_workbench.harmony.builtin import builtin_text
from gptoss_workbench.harmony.messages import CHANNELS, ROLES, Message, conversation
from gptoss_workbench.harmony.tools import tools_text

if TYPE_CHECKING:
    from gptoss_workbench.tokenizer import Tokenizer

IDENTITY = "You are ChatGPT, a large language model trained by OpenAI."
EFFORTS = ("low", "medium", "high")
CONSTRAIN = "<|constrain|>"

Messages = str | Iterable[Message | Mapping[str, Any]]
Keep = Literal["unfinished", "harmony", "all"]
KEEPS = get_args(Keep)


class _Piece(NamedTuple):
    text: str
    control: bool
    """Whether the text is a special token."""


@dataclass(frozen=True)
class _Options:
    """The keywords of `render` and `render_tokens`."""

    tools: Sequence[Mapping[str, Any]] | None
    builtin_tools: Sequence[str]
    effort: str | None
    system_template: str | None
    date: str | None
    identity: str | None
    knowledge_cutoff: str | None
    completion: bool
    prefill: Message | None
    keep_analysis: Keep
    training: bool

    def __post_init__(self) -> None:
        if self.effort is not None and self.effort not in EFFORTS:
            raise ValueError(f"render: expected effort among {EFFORTS}, got {self.effort!r}")
        if self.keep_analysis not in KEEPS:
            raise ValueError(
                f"render: expected keep_analysis among {KEEPS}, got {self.keep_analysis!r}"
            )
        if self.prefill is not None and not self.completion:
            raise ValueError("render: expected completion=True with a prefill, got False")


def render(
    messages: Messages,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    builtin_tools: Sequence[str] = (),
    effort: str | None = "medium",
    system_template: str | None = None,
    date: str | None = None,
    identity: str | None = IDENTITY,
    knowledge_cutoff: str | None = "2024-06",
    completion: bool = True,
    prefill: Message | None = None,
    keep_analysis: Keep = "unfinished",
    training: bool = False,
) -> str:
    """Write a conversation as harmony text.

    Args:
        messages: Messages, OpenAI-style dicts, or a bare question. The system message is written
            automatically, unless the first is Message("system", ...), which stands as it is.
        tools: function tools as OpenAI-style dicts, declared in the developer message.
        builtin_tools: "browser", "python" or both, declared in the system message.
        system_template: the whole system message instead of the official wording, with the fields
            {effort}, {date}, {identity} and {knowledge_cutoff}.
        date: "2025-06-28", say; None leaves the line out, so that output never depends on the day.
        completion: end with <|start|>assistant, for the model to go on.
        prefill: a message left open at the end, for the model to continue (needs completion).
        keep_analysis: "unfinished" drops an analysis message that a final message follows;
            "harmony" drops what openai-harmony 0.0.8 drops; "all" keeps every one. With
            completion=False the final message that ends the conversation finishes nothing.
        training: close a last final message with <|return|>, as the model learned to.
    """
    options = _Options(
        tools,
        builtin_tools,
        effort,
        system_template,
        date,
        identity,
        knowledge_cutoff,
        completion,
        prefill,
        keep_analysis,
        training,
    )
    return "".join(piece.text for piece in _pieces(_listed(messages), options))


def render_tokens(
    messages: Messages,
    tokenizer: Tokenizer,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    builtin_tools: Sequence[str] = (),
    effort: str | None = "medium",
    system_template: str | None = None,
    date: str | None = None,
    identity: str | None = IDENTITY,
    knowledge_cutoff: str | None = "2024-06",
    completion: bool = True,
    prefill: Message | None = None,
    keep_analysis: Keep = "unfinished",
    training: bool = False,
) -> list[int]:
    """Write a conversation as tokens; the arguments are those of `render`.

    A tokenizer that carries a system_template lends it where none is given.
    """
    template = tokenizer.system_template if system_template is None else system_template
    options = _Options(
        tools,
        builtin_tools,
        effort,
        template,
        date,
        identity,
        knowledge_cutoff,
        completion,
        prefill,
        keep_analysis,
        training,
    )
    return _encode(_pieces(_listed(messages), options), tokenizer)


def message_text(message: Message) -> str:
    """Write one message alone, from <|start|> to its closing marker."""
    return "".join(piece.text for piece in _message(message))


def _encode(pieces: list[_Piece], tokenizer: Tokenizer) -> list[int]:
    ids: list[int] = []
    for text, control in pieces:
        if not control:
            ids += tokenizer.encode(text, allow_special=False)
        elif text in tokenizer.special:
            ids.append(tokenizer.special[text])
        else:
            raise ValueError(
                f"render_tokens: expected {tokenizer!r} to know {text}, but it has no such special "
                "token; harmony needs a gpt-oss tokenizer"
            )
    return ids


def _pieces(messages: list[Message], options: _Options) -> list[_Piece]:
    if not messages or messages[0].role != "system":
        messages = [Message("system", _system_text(options)), *messages]
    messages = _kept(_with_developer(messages, options.tools), options)
    out = [piece for message in messages for piece in _message(message)]
    if options.prefill is not None:
        return out + _message(options.prefill, closed=False)
    if options.completion:
        return [*out, _Piece("<|start|>", True), _Piece("assistant", False)]
    if options.training and messages[-1].channel == "final":
        out[-1] = _Piece("<|return|>", True)
    return out


def _message(message: Message, *, closed: bool = True) -> list[_Piece]:
    """Write a message in the pieces that openai-harmony encodes one by one."""
    texts = [*_author(message)]
    if message.recipient not in (None, "all"):
        texts.append(f" to={message.recipient}")
    out = [_Piece("<|start|>", True), *(_Piece(text, False) for text in texts)]
    if message.channel is not None:
        out += [_Piece("<|channel|>", True), _Piece(message.channel, False)]
    out += [*_content_type(message.content_type), _Piece("<|message|>", True)]
    out.append(_Piece(message.content, False))
    if closed:
        called = message.role == "assistant" and message.recipient is not None
        out.append(_Piece("<|call|>" if called else "<|end|>", True))
    return out


def _author(message: Message) -> list[str]:
    if message.role not in ROLES:
        raise ValueError(f"render: expected a role among {ROLES}, got {message.role!r}")
    if message.role != "tool":
        return [message.role, f":{message.name}"] if message.name else [message.role]
    if not message.name:
        raise ValueError(
            "render: expected a tool message to name its tool, got name=None; "
            'give Message("tool", ..., name="functions.lookup", recipient="assistant")'
        )
    return [message.name]


def _content_type(content_type: str | None) -> list[_Piece]:
    if content_type is None:
        return []
    if not content_type.startswith(CONSTRAIN):
        return [_Piece(f" {content_type}", False)]
    rest = _Piece(content_type.removeprefix(CONSTRAIN), False)
    return [_Piece(" ", False), _Piece(CONSTRAIN, True), rest]


def _system_text(options: _Options) -> str:
    if options.system_template is not None:
        fields = {
            "{effort}": options.effort,
            "{date}": options.date,
            "{identity}": options.identity,
            "{knowledge_cutoff}": options.knowledge_cutoff,
        }
        text = options.system_template
        for field, value in fields.items():
            text = text.replace(field, value or "")
        return text
    top = [options.identity] if options.identity is not None else []
    if options.knowledge_cutoff is not None:
        top.append(f"Knowledge cutoff: {options.knowledge_cutoff}")
    if options.date is not None:
        top.append(f"Current date: {options.date}")
    sections = ["\n".join(top)] if top else []
    if options.effort is not None:
        sections.append(f"Reasoning: {options.effort}")
    if options.builtin_tools:
        sections.append(builtin_text(options.builtin_tools))
    channels = f"# Valid channels: {', '.join(CHANNELS)}."
    channels += " Channel must be included for every message."
    if options.tools:
        channels += "\nCalls to these tools must go to the commentary channel: 'functions'."
    return "\n\n".join([*sections, channels])


def _with_developer(
    messages: list[Message], tools: Sequence[Mapping[str, Any]] | None
) -> list[Message]:
    """Give the developer's text its heading and put the tools' declarations behind the first.

    Text that begins with a heading already, as parsed messages do, stays as it is.
    """
    declared = [tools_text(tools)] if tools else []
    out = []
    for message in messages:
        if message.role == "developer":
            headed = message.content.startswith(("# Instructions", "# Tools"))
            text = message.content if headed else f"# Instructions\n\n{message.content}"
            sections, declared = [text, *declared], []
            message = Message("developer", "\n\n".join(sections), name=message.name)
        out.append(message)
    if declared:
        out.insert(1, Message("developer", declared[0]))
    return out


def _kept(messages: list[Message], options: _Options) -> list[Message]:
    """Leave out the analysis of finished turns."""
    finals = [i for i, message in enumerate(messages) if message.channel == "final"]
    if options.keep_analysis == "all" or not finals:
        return messages
    if options.keep_analysis == "harmony":
        latest = next((m for m in reversed(messages) if m.role == "assistant"), None)
        end = finals[0] if latest is not None and latest.channel == "final" else 0
    else:
        if not options.completion and finals[-1] == len(messages) - 1:
            finals.pop()
        end = finals[-1] if finals else 0
    return [m for i, m in enumerate(messages) if i >= end or m.channel != "analysis"]


def _listed(messages: Messages) -> list[Message]:
    return [Message("user", messages)] if isinstance(messages, str) else conversation(messages)
