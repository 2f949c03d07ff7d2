"""The shell of every view: one piece of HTML that carries its own picture, table, data and script.

A notebook that is reopened, not trusted or exported keeps the picture and the table; wherever
scripts run, the renderer takes their place. Nothing is ever fetched.

    <div data-gptoss=ID>  style | inert: PNG + table | header: JSON | payload | script  </div>

The same view gives the same bytes, so saved notebooks differ only where the data does. `live()`
shows the same renderer as a widget that answers.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import packing

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from .live import Live

HERE = Path(__file__).parent
BUDGET = 2_000_000
"""Bytes a view may take by default; `budget=` raises it as far as `LIMIT`."""
LIMIT = 8_000_000
INERT_ROWS = 12
"""Rows of the table that stands in where scripts do not run."""


class Part(NamedTuple):
    """What goes to the page in one piece."""

    header: Mapping[str, Any]
    buffers: Mapping[str, np.ndarray]


class Demand(NamedTuple):
    """What a live view carries in place of the snapshot's data, and how it answers for more."""

    opening: Part
    answer: Callable[[Mapping[str, Any]], Part]
    """Gives what the page asks for."""


@dataclass(frozen=True, eq=False)
class View:
    """A picture of a trace one can point at; show it bare in a notebook, or save it."""

    kind: str
    """Names the renderer: the `.js` file of that name."""
    scripts: tuple[str, ...]
    """Script files the renderer stands on, first to last."""
    finding: str
    """One sentence that says what is shown, for those who do not see it."""
    header: Mapping[str, Any]
    buffers: Mapping[str, np.ndarray]
    frame: Callable[[], pandas.DataFrame] = field(repr=False)
    """Makes the exact numbers."""
    summary: Callable[[], pandas.DataFrame] = field(repr=False)
    """Makes the small table of the inert body."""
    figure: Callable[[], Figure] = field(repr=False)
    """Makes the picture of the inert body."""
    check: Callable[[Mapping[str, Any]], dict[str, Any]] = field(repr=False)
    """Completes a state; raises where it names what is not there."""
    reopen: Callable[[Mapping[str, Any]], View] = field(repr=False)
    """Makes the same view in another state."""
    smaller: str
    """Keyword that makes the view smaller, for the error that says it is too big."""
    budget: int = BUDGET
    demand: Callable[[Mapping[str, Any]], Demand] | None = field(default=None, repr=False)
    """From a state, what a live view carries; None if it carries what the snapshot does."""

    def __post_init__(self) -> None:
        most = len(self._header_text) + packing.most_bytes(self.buffers)
        if most > min(self.budget, LIMIT):
            size = len(self._header_text) + len(self._payload)
            check_budget(self.kind, size, budget=self.budget, smaller=self.smaller)

    def __repr__(self) -> str:
        return f"{self.kind}: {self.finding}"

    def _repr_html_(self) -> str:
        return self.fragment()

    def live(self) -> Live:
        """Show the view as a widget: a click sets its `selected`, and setting that moves it.

            shown = wb.views.attention(trace, layer=2).live()
            shown.selected["query"]

        With the environment variable GPTOSS_SNAPSHOT=1 it shows itself as a snapshot instead.
        """
        from .live import Live

        return Live(self)

    def state(self) -> dict[str, Any]:
        """What is selected when the view opens; hand it back as `state=` to open it there again.

        Tokens are counted from the row's first that is no pad.
        """
        return dict(self.header["state"])

    def to_pandas(self) -> pandas.DataFrame:
        """Give the exact numbers behind the picture."""
        return self.frame()

    def to_html(self, path: str | Path) -> Path:
        """Write the view as a page of its own."""
        from .page import page

        return page([self], title=f"gpt-oss {self.kind}", path=path)

    def to_png(self, path: str | Path | None = None) -> bytes:
        """Draw the view as PNG; also into a file if one is named."""
        return self._draw("png", path)

    def to_svg(self, path: str | Path | None = None) -> bytes:
        """Draw the view as SVG; also into a file if one is named."""
        return self._draw("svg", path)

    def fragment(self) -> str:
        """The piece of HTML that is the view."""
        header, payload = self._header_text, self._payload
        name = hashlib.sha256((header + payload).encode()).hexdigest()[:12]
        return (
            f'<div class="gptoss-view" data-gptoss="{name}" data-kind="{self.kind}">'
            f"<style>{read('theme.css')}</style>"
            f'<div class="gptoss-inert">{self._picture()}{self._table()}</div>'
            f'<script type="application/json" class="gptoss-header">{header}</script>'
            f'<script type="text/plain" class="gptoss-payload">{payload}</script>'
            f'<script type="module">\n{self.script()}\nboot("{name}", render);\n</script></div>'
        )

    def script(self) -> str:
        """The renderer: a function `render(stage, header, buffers, emit, ask)` and its parts."""
        return "\n".join(read(f"{stem}.js") for stem in ("shell", *self.scripts, self.kind))

    @cached_property
    def _header_text(self) -> str:
        return packing.header_text(self.kind, self.finding, self.header, self.buffers)

    @cached_property
    def _payload(self) -> str:
        return packing.packed(self.buffers)

    def _picture(self) -> str:
        from .picture import fewer_colours

        png = base64.b64encode(fewer_colours(self.to_png())).decode()
        return f'<img alt="{escape(self.finding)}" src="data:image/png;base64,{png}">'

    def _table(self) -> str:
        rows = self.summary()
        cut = len(rows) - INERT_ROWS
        note = f"<p>{cut} more rows: to_pandas() has all.</p>" if cut > 0 else ""
        return html_table(list(map(str, rows.columns)), rows.head(INERT_ROWS).to_numpy()) + note

    def _draw(self, form: str, path: str | Path | None) -> bytes:
        import matplotlib as mpl

        out = io.BytesIO()
        stamp = {"Software": None} if form == "png" else {"Date": None, "Creator": None}
        with mpl.rc_context({"svg.hashsalt": self.kind, "svg.fonttype": "path"}):
            self.figure().savefig(out, format=form, metadata=stamp)
        if path is not None:
            Path(path).write_bytes(out.getvalue())
        return out.getvalue()


def check_budget(kind: str, size: int, *, budget: int, smaller: str) -> None:
    """Raise if a view is over its budget, with its size and the keyword that makes it smaller."""
    allowed = min(budget, LIMIT)
    if size > allowed:
        more = f", or allow up to {LIMIT:,} with budget=" if size <= LIMIT else ""
        raise ValueError(
            f"views.{kind}: the view takes {size:,} bytes and may take {allowed:,}; "
            f"show less with {smaller}{more}"
        )


def check_state(kind: str, state: Mapping[str, Any] | str | None, known: Sequence[str]) -> dict:
    """Read a state, also from the text a page copies; an unknown key raises."""
    given = json.loads(state) if isinstance(state, str) else dict(state or {})
    if given.pop("view", kind) != kind:
        raise ValueError(f"views.{kind}: this state is that of another view")
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f"views.{kind}: state knows {', '.join(known)}; got {', '.join(unknown)}")
    return given


def check_place(kind: str, name: str, value: Any, count: int, what: str) -> None:
    """Raise if a state's number does not count one of `count` things; None is nothing."""
    if value is not None and not 0 <= value < count:
        raise ValueError(f"views.{kind}: state {name}={value}, but there are {count} {what}")


def html_table(columns: Sequence[str], rows: Sequence[Sequence[Any]] | np.ndarray) -> str:
    """Write a small table, everything escaped."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(_cell(value))}</td>" for value in row) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def read(name: str) -> str:
    """Give the text of a file beside this one."""
    return (HERE / name).read_text(encoding="utf-8")


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
