"""The shell of every view: one piece of HTML that carries its own picture, table, data and script.

A notebook that is reopened, not trusted or exported keeps the picture and the table; wherever
scripts run, the renderer takes their place. Nothing is ever fetched.

    <div data-gptoss=ID>  style | inert: PNG + table | header: JSON | payload | script  </div>
    payload = base64(gzip(buffers, each from a multiple of 8 bytes))

The same view gives the same bytes, so saved notebooks differ only where the data does.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

HERE = Path(__file__).parent
SCHEMA = 1
BUDGET = 2_000_000
"""Bytes a view may take by default; `budget=` raises it as far as `LIMIT`."""
LIMIT = 8_000_000
INERT_ROWS = 12
"""Rows of the table that stands in where scripts do not run."""


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
    smaller: str
    """Keyword that makes the view smaller, for the error that says it is too big."""
    budget: int = BUDGET

    def __post_init__(self) -> None:
        size = len(self._header_text()) + len(self._payload())
        check_budget(self.kind, size, budget=self.budget, smaller=self.smaller)

    def __repr__(self) -> str:
        return f"{self.kind}: {self.finding}"

    def _repr_html_(self) -> str:
        return self.fragment()

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
        header, payload = self._header_text(), self._payload()
        name = hashlib.sha256((header + payload).encode()).hexdigest()[:12]
        script = "\n".join(read(f"{stem}.js") for stem in (*self.scripts, self.kind))
        return (
            f'<div class="gptoss-view" data-gptoss="{name}" data-kind="{self.kind}">'
            f"<style>{read('theme.css')}</style>"
            f'<div class="gptoss-inert">{self._picture()}{self._table()}</div>'
            f'<script type="application/json" class="gptoss-header">{header}</script>'
            f'<script type="text/plain" class="gptoss-payload">{payload}</script>'
            f'<script type="module">\n{script}\nboot("{name}", render);\n</script></div>'
        )

    def _header_text(self) -> str:
        layout, at = [], 0
        for name, array in self.buffers.items():
            layout.append({"name": name, "dtype": str(array.dtype), "offset": at} | _shape(array))
            at += _padded(array.nbytes)
        facts = {"schema": SCHEMA, "view": self.kind, "finding": self.finding, "buffers": layout}
        return script_json(facts | dict(self.header))

    def _payload(self) -> str:
        parts = [
            array.tobytes().ljust(_padded(array.nbytes), b"\0") for array in self.buffers.values()
        ]
        return base64.b64encode(gzip.compress(b"".join(parts), 9, mtime=0)).decode()

    def _picture(self) -> str:
        png = base64.b64encode(self.to_png()).decode()
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


def script_json(value: Any) -> str:
    """Write JSON that cannot end the script element it stands in."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def html_table(columns: Sequence[str], rows: Sequence[Sequence[Any]] | np.ndarray) -> str:
    """Write a small table, everything escaped."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(_cell(value))}</td>" for value in row) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def quantise(
    values: np.ndarray, low: float = 0.0, top: float = 1.0, *, root: bool = False
) -> np.ndarray:
    """Write values from `low` to `top` as 0 to 255; on a square-root scale if `root`."""
    part = np.clip((values - low) / (top - low), 0.0, 1.0) if top > low else np.zeros_like(values)
    return np.rint(255 * (np.sqrt(part) if root else part)).astype(np.uint8)


def read(name: str) -> str:
    """Give the text of a file beside this one."""
    return (HERE / name).read_text(encoding="utf-8")


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _shape(array: np.ndarray) -> dict[str, Any]:
    return {"shape": list(array.shape), "length": int(array.size)}


def _padded(size: int) -> int:
    return -(-size // 8) * 8
