"""How labelled tokens look: a line a message in the terminal, colours by channel in a notebook."""

from __future__ import annotations

import html as markup
from collections.abc import Sequence
from itertools import groupby
from typing import Any

COLOURS = {
    "analysis": "#4c8dd6",
    "commentary": "#c98a1b",
    "final": "#3fa35a",
    None: "#8a8a8a",
}
LONGEST = 20_000
"""Characters after which a notebook's view is cut."""


def summary(message: Any, text: str) -> str:
    """Write a message in one line."""
    who = message.name if message.role == "tool" else message.role
    to = f" to={message.recipient}" if message.recipient else ""
    channel = f" {message.channel}" if message.channel else ""
    said = " ".join(text.split())
    said = f"{said[:57]}…" if len(said) > 58 else said
    end = "" if message.complete else " (open)"
    return (
        f"{message.index} {who or '?'}{to}{channel} [{message.start}:{message.stop}]{end}: {said}"
    )


def html(labels: Sequence[Any], pieces: Sequence[str]) -> str:
    """Write the stream with a bar and a tint for each channel.

    The tints are translucent and the ink is the page's own, so dark themes stay readable; the
    channel is also written out, so colour is never the only sign.
    """
    rows, room = [], LONGEST
    for number, group in groupby(zip(labels, pieces, strict=True), key=lambda row: row[0].message):
        row, shown = list(group), 0
        while shown < len(row) and room > 0:
            room -= len(row[shown][1])
            shown += 1
        if number >= 0 and shown:
            rows.append(_message(row[:shown]))
    if room <= 0:
        rows.append(f"<div>… cut here; {len(pieces)} tokens in all</div>")
    style = (
        "font-family:monospace;font-size:12px;line-height:1.5;white-space:pre-wrap;"
        "max-height:36em;overflow:auto"
    )
    return f'<div style="{style}">{"".join(rows)}</div>'


def _message(row: Sequence[tuple[Any, str]]) -> str:
    label = row[0][0]
    colour = COLOURS.get(label.channel, COLOURS[None])
    title = " ".join(filter(None, [label.role, label.channel, label.recipient]))
    inner = ""
    for (part, sentence), group in groupby(row, key=lambda r: (r[0].part, r[0].sentence)):
        text = "".join(piece for _, piece in group)
        inner += _run(text, part, sentence)
    return (
        f'<div title="{markup.escape(title)}" style="border-left:3px solid {colour};'
        f'background:{colour}1f;margin:2px 0;padding:1px 6px">{inner}</div>'
    )


def _run(text: str, part: str, sentence: int) -> str:
    """Write neighbouring tokens of one part and sentence; markers and headers are dimmed."""
    text = markup.escape(text)
    if part != "body":
        return f'<span style="opacity:.55">{text}</span>'
    return f'<span title="sentence {sentence}">{text}</span>'
