"""Harmony, gpt-oss's chat format: messages to tokens, and tokens to messages, channels, sentences.

from gptoss_workbench import harmony
ids = harmony.render_tokens([{"role": "user", "content": "What is 7 * 8?"}], tokenizer)
spans = harmony.spans(ids + completion, tokenizer)
spans.mask(channel="analysis", part="body")
harmony.parse(completion, tokenizer)
"""

from gptoss_workbench.harmony.messages import CHANNELS, ROLES, Message, conversation
from gptoss_workbench.harmony.parse import parse
from gptoss_workbench.harmony.render import EFFORTS, IDENTITY, message_text, render, render_tokens
from gptoss_workbench.harmony.sentences import sentences
from gptoss_workbench.harmony.spans import MessageSpan, SentenceSpan, Spans, TokenLabel, spans
from gptoss_workbench.harmony.tools import tools_text

__all__ = [
    "CHANNELS",
    "EFFORTS",
    "IDENTITY",
    "ROLES",
    "Message",
    "MessageSpan",
    "SentenceSpan",
    "Spans",
    "TokenLabel",
    "conversation",
    "message_text",
    "parse",
    "render",
    "render_tokens",
    "sentences",
    "spans",
    "tools_text",
]


def __dir__() -> list[str]:
    return sorted(__all__)
