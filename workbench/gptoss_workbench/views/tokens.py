"""The conversation as tokens: which channel, which message, which sentence each one belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from .picture import strip
from .snapshot import BUDGET, View, check_place, check_state
from .transcript import Transcript, transcript, visible

if TYPE_CHECKING:
    import pandas

    from gptoss_workbench.trace import Trace


def tokens(
    trace: Trace,
    row: int = 0,
    *,
    state: Mapping[str, Any] | str | None = None,
    budget: int = BUDGET,
) -> View:
    """Show the text of one row token by token, coloured by channel.

        wb.views.tokens(trace)

    Point at a token to read its role, channel, part, sentence and id; a click holds it.
    """
    story = transcript(trace, row)
    check = partial(_checked, len(story.tokens))
    opened = check(check_state("tokens", state, ["token"]))
    return View(
        kind="tokens",
        scripts=("strip",),
        finding=_finding(story),
        header=story.header() | {"state": opened},
        buffers={},
        frame=partial(_frame, story),
        summary=partial(_summary, story),
        figure=partial(strip, story),
        check=check,
        reopen=lambda state: tokens(trace, row, state=state, budget=budget),
        smaller="row= of a shorter text",
        budget=budget,
    )


def _checked(count: int, state: Mapping[str, Any]) -> dict[str, Any]:
    """Complete a state and raise where it names what is not there."""
    out = {"token": None} | check_state("tokens", state, ["token"])
    check_place("tokens", "token", out["token"], count, "tokens")
    return out


def _finding(story: Transcript) -> str:
    lanes = ", ".join(f"{count} {lane}" for lane, count in story.counts().items())
    messages = len({token.message for token in story.tokens})
    return f"{len(story.tokens)} tokens in {messages} messages: {lanes}"


def _frame(story: Transcript) -> pandas.DataFrame:
    """One row a token."""
    import pandas

    out = pandas.DataFrame(story.tokens)
    out["sentence"] = out["sentence"].astype("Int64").replace(-1, pandas.NA)
    return out


def _summary(story: Transcript) -> pandas.DataFrame:
    """One row a message."""
    import pandas

    rows = []
    for message in story.header()["messages"]:
        part = story.tokens[message["start"] : message["stop"]]
        body = "".join(token.text for token in part if token.part == "body")
        rows.append([message["lane"], len(part), visible(body[:80])])
    return pandas.DataFrame(rows, columns=["message", "tokens", "text"])
