"""Tokens back to messages; never raises on what a model wrote."""

from __future__ import annotations

from gptoss_workbench.harmony.messages import Message
from gptoss_workbench.harmony.track import Markers, cut
from gptoss_workbench.tokenizer import Ids, Tokenizer, as_ids


def parse(
    tokens: Ids, tokenizer: Tokenizer, *, start_role: str | None = "assistant"
) -> list[Message]:
    """Read a stream's messages, an unfinished last one included (rules in `track`).

    The default reads what a model generated behind <|start|>assistant; whole conversations name
    their roles themselves. A header cut off before any body gives no message.
    """
    ids = as_ids(tokens)
    markers = Markers(tokenizer)
    out = []
    for found in cut(ids, tokenizer.pieces(ids), markers, start_role):
        begun = ids[found.body_start - 1] == markers.message if found.body_start else False
        if found.complete or begun or found.body_stop > found.body_start:
            role, name, channel, recipient, content_type = found.header
            text = tokenizer.decode(ids[found.body_start : found.body_stop])
            out.append(Message(role, text, channel, recipient, content_type, name))
    return out
