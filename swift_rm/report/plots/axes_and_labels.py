"""How charts are drawn: axes, lines with whiskers, and labels at the ends of lines that do not overlap.

Every line has a marker and a dash of its own besides its colour. Sizes are in points, of a picture about as wide as a
page of text. Only used under :func:`swift_rm.report.plots.chart.drawing`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from swift_rm.evaluation.intervals import Interval
from swift_rm.report.palette import LIGHT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 460.0, 290.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 150.0, 10.0, 40.0  # margins; the labels of lines stand in the right one
TEXT, LINE_HEIGHT = 9.5, 13.0

_Dash = str | tuple[float, tuple[float, ...]]
SOLID: _Dash = "-"
DASHES: tuple[_Dash, ...] = ("-", (0, (5, 1.6)), (0, (2, 1.2)), (0, (7, 1.6, 1.6, 1.6)), (0, (1, 1.4)))

_DASH_NAMES = ("solid", "dashed", "short-dashed", "dash-dotted", "dotted")
_MARKER_NAMES = {
    "o": "circles", "s": "squares", "D": "diamonds", "^": "triangles", "v": "triangles on their tips", "P": "plus signs",
    "X": "crosses",
}  # fmt: skip
_SAMPLE = "sample"  # what marks the piece of a line beside its label


@dataclass(frozen=True)
class Look:
    """How one line is drawn: a colour of the palette by name, a marker, a dash, a filled marker or a hollow one."""

    colour: str
    marker: str = ""
    dash: _Dash = SOLID
    filled: bool = True
    width: float = 1.6

    @property
    def words(self) -> str:
        """Return how the line looks, without its colour."""
        drawn = f"{'thin ' * (self.width < 1)}{_DASH_NAMES[DASHES.index(self.dash)]} line"
        return f"{drawn} with {'hollow ' * (not self.filled)}{_MARKER_NAMES[self.marker]}" if self.marker else drawn


@dataclass(frozen=True)
class Label:
    """What stands beside a line's end: its text, where the line ends, and its look (None: text alone)."""

    text: str
    y: float
    look: Look | None


def canvas(height: float = HEIGHT, *, left: float = LEFT, right: float = RIGHT) -> Figure:
    """Return an empty figure with the charts' margins, in points."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 72, height / 72), facecolor=LIGHT["ground"])
    figure.subplots_adjust(left / WIDTH, BOTTOM / height, 1 - right / WIDTH, 1 - TOP / height)
    return figure


def dress(axes: Axes, x: str, y: str, *, grid: str = "y") -> Axes:
    """Name the axes and draw all that is not data quietly."""
    axes.set_facecolor("none")
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(LIGHT["quiet"])
    axes.tick_params(which="both", color=LIGHT["quiet"], labelcolor=LIGHT["soft"], labelsize=TEXT, length=3)
    axes.tick_params(which="minor", length=0)
    axes.grid(axis=grid, color=LIGHT["grid"], linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.set_xlabel(x, fontsize=TEXT, color=LIGHT["ink"], labelpad=5)
    axes.set_ylabel(y, fontsize=TEXT, color=LIGHT["ink"], labelpad=5)
    return axes


def line(axes: Axes, xs: Sequence[float], points: Sequence[Interval], look: Look, *, marked: Sequence[int] | None = None) -> None:
    """Draw a line through the points; those at the places ``marked``, or all, have a marker."""
    colour = LIGHT[look.colour]
    axes.plot(
        xs,
        [point.value for point in points],
        color=colour,
        linestyle=look.dash,
        linewidth=look.width,
        marker=look.marker or None,
        markersize=5.5,
        markevery=None if marked is None else list(marked),
        markerfacecolor=colour if look.filled else LIGHT["ground"],
        markeredgecolor=colour,
        markeredgewidth=1.2,
        zorder=3,
    )


def whiskers(axes: Axes, xs: Sequence[float], points: Sequence[Interval], look: Look, *, across: bool = False) -> None:
    """Draw the intervals that are defined, upright or, ``across``, level; ``xs`` are the places along the other axis."""
    known = [(x, point.low, point.high) for x, point in zip(xs, points, strict=True) if math.isfinite(point.low + point.high)]
    draw = axes.hlines if across else axes.vlines
    if known:
        places, lows, highs = zip(*known, strict=True)
        draw(places, lows, highs, colors=LIGHT[look.colour], linewidth=1.0, zorder=2)


def band(axes: Axes, xs: Sequence[float], points: Sequence[Interval], look: Look) -> None:
    """Shade the intervals along a line, pale enough for several to overlap; where one is not defined there is a gap."""
    lows, highs = [point.low for point in points], [point.high for point in points]
    axes.fill_between(xs, lows, highs, color=LIGHT[look.colour], alpha=0.14, linewidth=0, zorder=1)


def end_labels(axes: Axes, labels: Sequence[Label], x: float) -> None:
    """Write the labels right of the axes, as near to their lines' ends (at ``x``) as fits, each with a piece of its line."""
    shown = [label for label in labels if math.isfinite(label.y)]
    axes.autoscale_view()  # places are only known once the limits are
    box = axes.get_position()
    height = box.height * axes.figure.get_figheight() * 72  # type: ignore[union-attr]
    width = box.width * axes.figure.get_figwidth() * 72  # type: ignore[union-attr]
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = [to_axes.transform((x, label.y)) for label in shown]
    for label, end, place in zip(
        shown, ends, spread([end[1] * height for end in ends], LINE_HEIGHT, -8.0, height + 4.0), strict=True
    ):
        y = place / height
        colour = LIGHT[label.look.colour if label.look else "quiet"]
        start, stop = 1 + 16 / width, 1 + 38 / width
        axes.plot(
            [end[0] + 5 / width, start - 2 / width],
            [end[1], y],
            color=LIGHT["quiet"],
            linewidth=0.7,
            transform=axes.transAxes,
            clip_on=False,
        )
        if label.look:
            axes.plot(
                [start, (start + stop) / 2, stop],
                [y] * 3,
                gid=_SAMPLE,
                label=f"{label.text}: {label.look.words}",
                color=colour,
                linestyle=label.look.dash,
                linewidth=label.look.width,
                marker=label.look.marker or None,
                markevery=[1],
                markersize=5.5,
                markerfacecolor=colour if label.look.filled else LIGHT["ground"],
                markeredgecolor=colour,
                markeredgewidth=1.2,
                transform=axes.transAxes,
                clip_on=False,
            )
        axes.text(
            stop + 5 / width if label.look else start,
            y,
            label.text,
            transform=axes.transAxes,
            fontsize=TEXT,
            color=LIGHT["ink" if label.look else "soft"],
            verticalalignment="center_baseline",
        )


def key(figure: Figure) -> list[str]:
    """Return what :func:`end_labels` wrote, each with how its line looks."""
    return [str(line.get_label()) for axes in figure.axes for line in axes.lines if line.get_gid() == _SAMPLE]


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return the places moved as little as makes them ``gap`` apart and within the bounds, in the same order.

    Less ``gap`` times its rank, each place may not fall below the one before: isotonic regression, by pooling adjacent
    violators, and then clipping, which is the least-squares answer within bounds too. Too many for the bounds get closer.
    """
    order = sorted(range(len(places)), key=lambda i: (places[i], -i))  # of equal ones the first is the highest
    gap = min(gap, (high - low) / max(1, len(places) - 1))
    blocks: list[list[float]] = []
    for rank, index in enumerate(order):
        blocks.append([places[index] - gap * rank])
        while len(blocks) > 1 and fmean(blocks[-1]) < fmean(blocks[-2]):
            last = blocks.pop()
            blocks[-1] += last
    level = [min(max(fmean(block), low), high - gap * (len(places) - 1)) for block in blocks for _ in block]
    moved = {index: level[rank] + gap * rank for rank, index in enumerate(order)}
    return [moved[i] for i in range(len(places))]


def plain_ticks(axes: Axes, places: Sequence[float], names: Sequence[str] | None = None) -> None:
    """Put ticks at these places of the x axis, and no others."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    axes.xaxis.set_major_locator(FixedLocator(list(places)))
    axes.xaxis.set_minor_locator(NullLocator())
    shown = names if names is not None else [f"{place:g}".replace("-", "\u2212") for place in places]
    axes.xaxis.set_major_formatter(FixedFormatter(list(shown)))


def sparse(places: Sequence[float], most: int = 9) -> list[float]:
    """Return those of the ascending places that have room for a tick on a logarithmic axis, the last among them."""
    apart = max(1.25, (places[-1] / places[0]) ** (1 / most))
    kept = [places[-1]]
    for place in reversed(places[:-1]):
        if place * apart <= kept[-1]:
            kept.append(place)
    return kept[::-1]


def last_known(points: Sequence[Interval]) -> float:
    """Return the last value that is defined, NaN if none is."""
    return next((point.value for point in reversed(points) if math.isfinite(point.value)), math.nan)


def percent_axis(axes: Axes) -> None:
    """Write the shares of the y axis in per cent."""
    from matplotlib.ticker import FuncFormatter

    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g}".replace("-", "\u2212")))


def share_limits(axes: Axes) -> None:
    """Keep the y axis within what a share can be, and at least a tenth of it wide."""
    low, high = axes.get_ylim()
    axes.set_ylim(max(min(low, 0.9), -0.01), min(max(high, 0.1), 1.01))
