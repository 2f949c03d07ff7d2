"""The still pictures of the views: what is seen where no script runs, and what papers print."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from .transcript import LANES, Token, Transcript, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, FONT = "#1b1f24", "#68707c", "DejaVu Sans"
MAP = "cividis"
MOST_LABELS = 120
"""More tokens than this on an axis are numbered instead of spelled out."""
LINE = 92
"""Characters on a line of the token strip."""
MOST_LINES = 24


def blank(width: float, height: float) -> Figure:
    """Start a picture on white, sizes in inches."""
    from matplotlib.figure import Figure

    return Figure((width, height), dpi=110, facecolor="white")


def place(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Add axes at a place in inches: labels have known sizes, so no layout need be solved."""
    wide, high = figure.get_size_inches()
    return figure.add_axes((left / wide, bottom / high, width / wide, height / high))


def style(axes: Axes) -> None:
    """Set thin muted axes and small type."""
    axes.tick_params(labelsize=7, length=0, colors=MUTED, pad=2)
    axes.xaxis.label.set(fontsize=8, color=INK)
    axes.yaxis.label.set(fontsize=8, color=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)


def token_axis(axes: Axes, tokens: list[Token], *, vertical: bool = False) -> None:
    """Write the tokens along an axis, each in the colour of its lane."""
    axis = axes.yaxis if vertical else axes.xaxis
    if len(tokens) > MOST_LABELS:
        return
    size = max(3.5, min(7.0, 520 / len(tokens)))
    turn = 0 if vertical else 90
    labels = [clip(visible(token.text)) for token in tokens]
    axis.set_ticks(
        range(len(tokens)), labels, rotation=turn, fontsize=size, fontfamily="DejaVu Sans Mono"
    )
    for label, token in zip(axis.get_ticklabels(), tokens, strict=True):
        label.set_color(darker(LANES[token.lane][1]))


def colour_bar(figure: Figure, axes: Axes, image, label: str) -> None:
    """Draw the scale of a map on axes of its own."""
    bar = figure.colorbar(image, cax=axes)
    bar.ax.tick_params(labelsize=7, length=0, colors=MUTED)
    bar.set_label(label, fontsize=8, color=INK)
    bar.outline.set_visible(False)  # type: ignore[operator]


def clip(text: str, most: int = 14) -> str:
    """Cut a label that would push the map aside."""
    return text if len(text) <= most else text[: most - 1] + "…"


def darker(colour: str) -> tuple[float, float, float]:
    """Give a lane's colour dark enough to read on white."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 * 0.62 for i in (1, 3, 5))
    return red, green, blue


def strip(story: Transcript) -> Figure:
    """Write the conversation down: one block a message, one tinted box a token."""
    lines = _lines(story)
    shown = lines[:MOST_LINES]
    height = 0.21 * (len(shown) + (len(lines) > MOST_LINES)) + 0.15
    figure = blank(8.2, height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-13, LINE + 1), ylim=(len(shown) + (len(lines) > MOST_LINES) + 0.2, -0.4))
    axes.axis("off")
    for y, (label, tokens) in enumerate(shown):
        _write_line(axes, y, label, tokens)
    if len(lines) > MOST_LINES:
        axes.text(0, len(shown) + 0.2, f"… {len(lines) - MOST_LINES} more lines", fontsize=7)
    return figure


def _lines(story: Transcript) -> list[tuple[str, list[Token]]]:
    """Cut the tokens into lines, a new one at every message."""
    out: list[tuple[str, list[Token]]] = []
    used, message = 0, object()
    for token in story.tokens:
        wide = len(visible(token.text))
        if token.message != message or used + wide > LINE:
            label = f"{LANES[token.lane][0]}  {token.lane}" if token.message != message else ""
            out.append((label, []))
            used, message = 0, token.message
        out[-1][1].append(token)
        used += wide + 1
    return [(_label(label, tokens), tokens) for label, tokens in out]


def _label(label: str, tokens: list[Token]) -> str:
    """Name a message by its body's lane: its header may come before the channel is known."""
    body = [token for token in tokens if token.part == "body"]
    lane = (body or tokens)[0].lane
    return f"{LANES[lane][0]}  {lane}" if label else ""


def _write_line(axes: Axes, y: int, label: str, tokens: list[Token]) -> None:
    from matplotlib.patches import Rectangle

    axes.text(-12.4, y + 0.2, label, fontsize=7, color=INK, fontfamily=FONT, fontweight="bold")
    x = 0.0
    for token in tokens:
        text, colour = visible(token.text), LANES[token.lane][1]
        light = 0.34 if token.part == "body" else 0.12
        axes.add_patch(
            Rectangle((x, y - 0.36), len(text) + 0.7, 0.78, color=colour, alpha=light, lw=0)
        )
        ink = INK if token.part == "body" else MUTED
        axes.text(x + 0.35, y + 0.2, text, fontsize=7.1, color=ink, fontfamily="DejaVu Sans Mono")
        x += len(text) + 1


def lane_strip(axes: Axes, tokens: list[Token], y: float, height: float) -> None:
    """Draw the lanes of the tokens as a thin band across a map, one box a run of equal ones."""
    from matplotlib.patches import Rectangle

    starts = [i for i, t in enumerate(tokens) if not i or t.lane != tokens[i - 1].lane]
    for start, stop in zip(starts, [*starts[1:], len(tokens)], strict=True):
        colour = LANES[tokens[start].lane][1]
        box = Rectangle((start - 0.5, y), stop - start, height, color=colour, lw=0, clip_on=False)
        axes.add_patch(box)


def fewer_colours(png: bytes) -> bytes:
    """Write a picture with 128 colours: a third of the bytes of a noisy map."""
    from PIL import Image

    out = io.BytesIO()
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture.quantize(128, dither=Image.Dither.NONE).save(out, "png", optimize=True)
    return out.getvalue()


def matrix(
    axes: Axes, values: np.ndarray, low: float = 0.0, top: float = 1.0, *, root: bool = False
):
    """Draw a map, square-rooted if asked so that small weights stay visible."""
    from matplotlib.colors import PowerNorm

    norm = PowerNorm(0.5 if root else 1.0, vmin=low, vmax=top)
    return axes.imshow(values, cmap=MAP, norm=norm, aspect="auto", interpolation="nearest")
