"""Several views of one trace in one standalone page, with what made them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .attention import attention
from .experts import experts
from .snapshot import LIMIT, View, read
from .tokens import tokens

if TYPE_CHECKING:
    from gptoss_workbench.trace import Trace


def page(
    views: Sequence[View | tuple[str, View]],
    *,
    title: str,
    path: str | Path,
    told: Mapping[str, str] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write views into one HTML file that needs nothing else; a view may come with a heading.

    page([("Channels", tokens(trace)), experts(trace)], title="First trace", path="page.html")

    `told` stands at the top, name by name (prompt, answer); `provenance` is folded at the end.
    """
    text = document(views, title=title, told=told or {}, provenance=provenance or {})
    size = len(text.encode())
    if size > LIMIT:
        raise ValueError(
            f"views.page: the page takes {size:,} bytes and may take {LIMIT:,}; "
            "put fewer views into it, or make them smaller with layers= and heads="
        )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def trace_page(
    trace: Trace,
    path: str | Path,
    *,
    title: str,
    told: Mapping[str, str] | None = None,
    layer: int | None = None,
    head: int = 0,
) -> Path:
    """Write the page of one trace: its tokens, its experts, and a head of one layer."""
    shown = [
        ("Tokens, by channel", tokens(trace)),
        ("Experts, layer by token", experts(trace)),
        ("Attention of one head", attention(trace, layer, head)),
    ]
    return page(shown, title=title, path=path, told=told, provenance=facts(trace))


def facts(trace: Trace) -> dict[str, str]:
    """Tell what made a trace, in plain words."""
    named = {name: value for name, value in trace.provenance.items() if value not in ([], None)}
    return {
        name.replace("_", " "): ", ".join(f"{k} {v}" for k, v in value.items())
        if isinstance(value, Mapping)
        else str(value)
        for name, value in named.items()
    }


def document(
    views: Sequence[View | tuple[str, View]],
    *,
    title: str,
    told: Mapping[str, str],
    provenance: Mapping[str, Any],
) -> str:
    """Give the text of such a page."""
    pairs = [view if isinstance(view, tuple) else ("", view) for view in views]
    sections = "".join(
        f"<section>{f'<h2>{escape(head)}</h2>' if head else ''}{view.fragment()}</section>"
        for head, view in pairs
    )
    lead = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in told.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{read('theme.css')}</style></head>"
        f'<body class="gptoss-page"><header><h1>{escape(title)}</h1>'
        f"{f'<dl>{lead}</dl>' if lead else ''}</header><main>{sections}</main>"
        f"{_provenance(provenance)}</body></html>\n"
    )


def _provenance(facts: Mapping[str, Any]) -> str:
    if not facts:
        return ""
    rows = "".join(
        f"<dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd>"
        for name, value in facts.items()
    )
    return (
        f"<footer><details><summary>What made this page</summary><dl>{rows}</dl></details></footer>"
    )
