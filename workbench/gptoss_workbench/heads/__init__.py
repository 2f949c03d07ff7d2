"""What attention heads attend to: summaries, sentences, and rows on request."""

from .rows import AttentionRows, attention_rows
from .sentences import SentenceAttention, sentence_attention
from .summaries import HeadSummary, head_summary

__all__ = [
    "AttentionRows",
    "HeadSummary",
    "SentenceAttention",
    "attention_rows",
    "head_summary",
    "sentence_attention",
]


def __dir__() -> list[str]:
    return sorted(__all__)
