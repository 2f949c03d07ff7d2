"""A view as a widget: the snapshot's renderer, with a kernel behind it.

`selected` is the view's state and goes both ways. Numbers too many to send at once are sent when
the page asks for them. A saved notebook keeps a widget only as an error line, so `freeze()` puts
the snapshot in its place; GPTOSS_SNAPSHOT=1 does so from the start (papermill, nbconvert, CI).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import anywidget
import traitlets

from . import packing
from .snapshot import Demand, Part, View, read

SNAPSHOT = "GPTOSS_SNAPSHOT"
"""Environment variable: 1 shows every live view as its snapshot and opens no connection."""
MOST = 32_000_000
"""Bytes that a live view may send at once."""


class Live(anywidget.AnyWidget):
    """A live view. Keys left out of a new `selected` stay as they are."""

    _esm = traitlets.Unicode().tag(sync=True)
    _css = read("theme.css")
    header = traitlets.Unicode().tag(sync=True)
    """JSON: what is shown, and where each array lies in `payload`."""
    payload = traitlets.Bytes().tag(sync=True)
    selected = traitlets.Dict().tag(sync=True)

    def __init__(self, view: View):
        self._view, self._shown, self._frozen = view, None, snapshots_only()
        state = view.state()
        whole = Demand(Part(view.header, view.buffers), _nothing)
        (facts, buffers), self._answer = view.demand(state) if view.demand else whole
        payload = packing.raw(buffers)
        check_size(view, len(payload))
        super().__init__(
            _esm=f"{view.script()}\n{read('live.js')}",
            header=packing.header_text(view.kind, view.finding, facts, buffers),
            payload=payload,
            selected=state,
        )
        self.on_msg(self._asked)

    def open(self) -> None:
        """Connect to the page, unless only snapshots are wanted."""
        if not self._frozen:
            super().open()

    def state(self) -> dict[str, Any]:
        """What is selected now; hand it back as `state=` to open a view there again."""
        return dict(self.selected)

    def snapshot(self) -> View:
        """The view as it stands, as one piece of HTML that needs no kernel."""
        return self._view.reopen(self.selected)

    def freeze(self) -> None:
        """Put the snapshot in the place of the widget, wherever it is shown, and disconnect."""
        self._frozen = True
        if self._shown is not None:
            self._shown.update(self._bundle()[0], raw=True)
        self.close()

    def __repr__(self) -> str:
        return f"live {self._view!r}"

    def _ipython_display_(self) -> None:
        """Show under a name of its own, by which `freeze` finds the output again."""
        from IPython.display import display

        name = None if self._shown is None else self._shown.display_id
        data, metadata = self._bundle()
        handle = display(data, metadata=metadata, raw=True, display_id=name or True)
        self._shown = self._shown or handle

    def _bundle(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the output holds, by MIME type, with its metadata."""
        if self._frozen:
            return {"text/plain": repr(self._view), "text/html": self.snapshot().fragment()}, {}
        return self._repr_mimebundle_() or ({}, {})

    def _asked(self, _widget: Live, content: Mapping[str, Any], _buffers: list) -> None:
        if "ask" in content:
            facts, buffers = self._answer(content["ask"])
            part = {**facts, "buffers": packing.layout(buffers)}
            self.send({"answer": content["ask"], "part": part}, [packing.raw(buffers)])

    @traitlets.validate("selected")
    def _checked(self, proposal: Mapping[str, Any]) -> dict[str, Any]:
        return self._view.check(self.selected | json.loads(json.dumps(proposal["value"])))


def snapshots_only() -> bool:
    """Tell whether the environment asks for snapshots."""
    return os.environ.get(SNAPSHOT, "") not in ("", "0")


def check_size(view: View, size: int) -> None:
    """Raise if a live view would send more at once than a page takes in its stride."""
    if size > MOST:
        raise ValueError(
            f"views.{view.kind}: the live view sends {size:,} bytes and may send {MOST:,}; "
            f"show less with {view.smaller}"
        )


def _nothing(ask: Mapping[str, Any]) -> Any:
    raise ValueError(f"this view carries all its numbers; the page asked for {dict(ask)}")
