"""Contestants take turns, round after round; figures are medians, ratios are taken in a round."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

PAUSE = 0.05
"""Seconds between two turns: threads that spin after their work go to sleep."""


class Row(NamedTuple):
    """One line of the table; empty cells do not apply."""

    what: str
    who: str
    threads: int | str
    value: float | str
    unit: str
    times: float | str = ""
    """time over that of this project with hooks off, the median of the rounds' ratios"""
    low: float | str = ""
    high: float | str = ""
    """the lowest and highest of these ratios"""
    share: float | str = ""
    of: str = ""
    """what the share is a share of"""


def in_turn(jobs: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """What each job measures, in rounds, after one round of warming up."""
    found: dict[str, list[float]] = {name: [] for name in jobs}
    for round_ in range(repeats + 1):
        for name, job in jobs.items():
            time.sleep(PAUSE)
            measured = job()
            if round_:
                found[name].append(measured)
    return found


def ratios(a: list[float], b: list[float]) -> tuple[float, float, float]:
    """Median, lowest and highest of a / b within a round."""
    each = [x / y for x, y in zip(a, b, strict=True)]
    return statistics.median(each), min(each), max(each)


def told(row: Row) -> str:
    """A row, to be printed."""
    value = f"{row.value:.4g}" if isinstance(row.value, float) else row.value
    text = f"{row.what:<22} {row.threads!s:>1} t  {row.who:<27} {value:>8} {row.unit:<9}"
    if isinstance(row.times, float):
        text += f" {row.times:>7.3f} x time ({row.low:.3f} to {row.high:.3f})"
    if isinstance(row.share, float):
        text += f" {row.share:>6.1%} of {row.of}"
    return text.rstrip()
