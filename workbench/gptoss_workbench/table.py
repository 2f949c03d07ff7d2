"""A Table: the small result every analysis gives, with the meaning of its columns beside it.

Columns have equal length. By convention `chance` is what a method would read on nothing, `low` and
`high` bound a 95 % interval, `n` counts what was averaged.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas

SHOWN = 12
PARTIAL = "INCOMPLETE: the run that gave the data was interrupted"


@dataclass(frozen=True, repr=False, eq=False)
class Table:
    """Columns of equal length, and what they mean.

    table = wb.routing.load_balance(routing)
    table["gini"], table.where(layer=2), table.to_pandas()
    """

    columns: Mapping[str, np.ndarray]
    """Name: one value a row."""
    title: str
    """What is measured, in one line."""
    source: str
    """The formula and where it comes from."""
    units: Mapping[str, str] = field(default_factory=dict)
    """Column: unit, for those that have one."""
    notes: Sequence[str] = ()
    """What one must know to read it."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What made it: model, data, seed, options."""

    def __post_init__(self):
        columns = {name: np.asarray(column) for name, column in self.columns.items()}
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"Table: columns must have equal length; got {lengths}")
        if unknown := set(self.units) - set(columns):
            raise ValueError(f"Table: units for columns that are not there: {sorted(unknown)}")
        object.__setattr__(self, "columns", columns)
        if self.provenance.get("complete") is False and PARTIAL not in self.notes:
            object.__setattr__(self, "notes", (*self.notes, PARTIAL))

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()))) if self.columns else 0

    def __getitem__(self, name: str) -> np.ndarray:
        """One column."""
        if name not in self.columns:
            raise KeyError(f"no column {name!r}; there are {', '.join(self.columns)}")
        return self.columns[name]

    def __dir__(self) -> list[str]:
        return sorted([*super().__dir__()])

    def _ipython_key_completions_(self) -> list[str]:
        return list(self.columns)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Rows, each a value by column name."""
        for values in zip(*self.columns.values(), strict=True):
            yield dict(zip(self.columns, values, strict=True))

    def where(self, **wanted_by: Any) -> Table:
        """Rows in which each named column equals a value, is in a list, or passes a function.

        table.where(layer=[2, 3], gini=lambda values: values > 0.5)
        """
        keep = np.ones(len(self), dtype=bool)
        for name, value in wanted_by.items():
            if callable(value):
                keep &= np.asarray(value(self[name]), dtype=bool)
                continue
            wanted = list(value) if isinstance(value, (list, tuple, set, range)) else [value]
            keep &= np.isin(self[name], wanted)
        return self.rows(keep)

    def sort(self, by: str, *, descending: bool = False) -> Table:
        """Rows in the order of one column; equal ones stay in order."""
        key = self[by]
        if key.dtype.kind not in "iuf":  # what has no minus, by rank
            key = np.unique(key, return_inverse=True)[1]
        return self.rows(np.argsort(-key if descending else key, kind="stable"))

    def head(self, n: int = 5) -> Table:
        """The first rows."""
        return self.rows(slice(n))

    def rows(self, index: Any) -> Table:
        """Rows by boolean mask, slice or positions."""
        columns = {name: column[index] for name, column in self.columns.items()}
        return Table(columns, self.title, self.source, self.units, self.notes, self.provenance)

    def to_pandas(self) -> pandas.DataFrame:
        """The columns as a data frame; `attrs` keeps title, source, units, notes, provenance."""
        from gptoss_workbench.trace_tables import frame

        out = frame({name: column for name, column in self.columns.items()})
        out.attrs |= self._about()
        return out

    def save(self, path: str | Path) -> Path:
        """Write <path>.csv, and <path>.json with what made it; both appear whole or not at all."""
        stem = Path(path).with_suffix("")
        stem.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self._about(), indent=1, ensure_ascii=False, default=str)
        parts = {".json": text + "\n", ".csv": self.to_pandas().to_csv(index=False)}
        for ending, content in parts.items():
            half = stem.with_name(f".{stem.name}{ending}.part")
            half.write_text(content, "utf-8")
            half.replace(stem.with_name(stem.name + ending))
        return stem.with_name(stem.name + ".csv")

    @classmethod
    def load(cls, path: str | Path) -> Table:
        """Read what `save` wrote; numbers come back as int64 or float64, all else as text."""
        import pandas

        stem = Path(path).with_suffix("")
        csv, about = (stem.with_name(stem.name + ending) for ending in (".csv", ".json"))
        for file in (csv, about):
            if not file.is_file():
                raise FileNotFoundError(f"Table.load: expected {file.name} in {file.parent}")
        read = pandas.read_csv(csv, keep_default_na=False, na_values=[""])
        columns = {str(name): read[name].to_numpy() for name in read.columns}
        return cls(columns, **json.loads(about.read_text("utf-8")))

    def _about(self) -> dict[str, Any]:
        return {
            "title": self.title, "source": self.source, "units": dict(self.units),
            "notes": list(self.notes), "provenance": dict(self.provenance),
        }  # fmt: skip

    def _lines(self) -> list[list[str]]:
        head = [f"{n} [{self.units[n]}]" if n in self.units else n for n in self.columns]
        rows = zip(*(column[:SHOWN] for column in self.columns.values()), strict=True)
        return [head, *([_cell(value) for value in row] for row in rows)]

    def __repr__(self) -> str:
        lines = self._lines()
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        body = ["  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in lines]
        more = [f"... {len(self) - SHOWN} more rows"] if len(self) > SHOWN else []
        return "\n".join([self.title, *body, *more, *self.notes])

    def _repr_html_(self) -> str:
        head, *body = self._lines()
        cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
        rows = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in body
        )
        notes = [f"{len(self) - SHOWN} more rows"] if len(self) > SHOWN else []
        about = "".join(f"<div>{escape(note)}</div>" for note in [*notes, *self.notes])
        return (
            f'<div style="color:inherit"><b>{escape(self.title)}</b>'
            f"<table><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table>"
            f"<details><summary>source</summary>{escape(self.source)}</details>{about}</div>"
        )


def _cell(value: Any) -> str:
    if isinstance(value, (float, np.floating)):
        return f"{value:.4g}"
    return str(value)
