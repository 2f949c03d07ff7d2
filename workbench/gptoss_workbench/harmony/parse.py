"""Tokens back to messages; never raises on what a model wrote."""

from __future__ import annotations

from gptoss_workbench.harmony.messages import Message
from gptoss_workbench.harmony.track import Markers, cut
from gptoss_workbench.tokenizer import Ids, Tokenizer, as_ids


def parse(
    tokens: Ids, tokenizer: Tokenizer, *, start_role: str | None = "assistant", prompt: int = 0
) -> list[Message]:
    """Read a stream's messages, an unfinished last one included (rules in `track`).

    The default reads what a model generated behind <|start|>assistant; whole conversations name
    their roles themselves. A header cut off before any body gives no message.

    Args:
        prompt: of the tokens, so many are read for their headers alone: the messages are those
            written behind them. One that the prompt left open keeps its role and channel, and
            its content begins where the prompt ends.
    """
    ids = as_ids(tokens)
    markers = Markers(tokenizer)
    out = []
    for found in cut(ids, tokenizer.pieces(ids), markers, start_role):
        body_start = max(found.body_start, prompt)
        begun = ids[body_start - 1] == markers.message if body_start else False
        opened_here = body_start == found.body_start and found.stop > prompt
        if body_start < found.body_stop or (opened_here and (found.complete or begun)):
            role, name, channel, recipient, content_type = found.header
            text = tokenizer.decode(ids[body_start : found.body_stop])
            out.append(Message(role, text, channel, recipient, content_type, name))
    return out
