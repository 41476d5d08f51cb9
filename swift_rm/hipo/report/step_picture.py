"""The picture of a run's figures over its steps: running means drawn over faint points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from swift_rm.evaluation.intervals import Interval
from swift_rm.hipo.report.run_log import Points
from swift_rm.report.palette import LIGHT
from swift_rm.report.plots.axes_and_labels import (
    DASHES,
    HEIGHT,
    Label,
    Look,
    canvas,
    dress,
    end_labels,
    line,
    percent_axis,
    share_limits,
)
from swift_rm.report.plots.chart import drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 120  # points of a line; more logged steps are averaged by as many as it takes
WINDOW = 9  # points that a running mean is over, fewer in a short run
MARKERS = 7  # of a line, so that it can be told from the others without its colour
LOOKS = (
    Look("c1", "o", width=2.0),
    Look("c2", "s", DASHES[1]),
    Look("c3", "^", DASHES[3]),
    Look("c4", "D", DASHES[2]),
    Look("c5", "v", DASHES[1], filled=False),
    Look("ink", "P", DASHES[4]),
    Look("c1", "X", DASHES[2]),
)


@dataclass(frozen=True)
class Line:
    """One line of a chart: its label, the points drawn, and their running means, one a point."""

    name: str
    points: Points
    smooth: Sequence[float]


@dataclass(frozen=True)
class Axis:
    """What the upright axis is: its name, whether it shows per cent and begins at 0, and a value that means something."""

    name: str
    share: bool = False
    from_zero: bool = False
    reference: float | None = None
    meaning: str = ""


def thinned(points: Points, most: int = MOST) -> tuple[Points, int]:
    """Return at most so many points, and how many logged ones each is the mean of; it stands at the last of these."""
    size = math.ceil(len(points.values) / most)
    ends = range(size - 1, len(points.values) - 1 + size, size)
    places = [min(end, len(points.values) - 1) for end in ends]
    starts = range(0, len(points.values), size)
    means = [fmean(points.values[start : start + size]) for start in starts]
    return Points([points.steps[place] for place in places], means), size


def window(count: int) -> int:
    """Return how many of so many points a running mean is over: an odd number, at most 9 and about a sixth of them."""
    return max(1, min(WINDOW, count // 6 // 2 * 2 + 1))


def running_means(values: Sequence[float]) -> list[float]:
    """Return the mean of each value and its neighbours in the window about it; those near the ends have fewer."""
    half = window(len(values)) // 2
    return [fmean(values[max(0, place - half) : place + half + 1]) for place in range(len(values))]


def step_picture(lines: Sequence[Line], axis: Axis) -> Figure:
    """Draw the lines over the training steps; at most as many as there are looks."""
    with drawing():
        from matplotlib.ticker import MaxNLocator

        figure = canvas(HEIGHT - 40.0, right=130.0)
        axes = dress(figure.add_subplot(), "training step", axis.name)
        labels = []
        for drawn, look in zip(lines, LOOKS, strict=False):
            if window(len(drawn.points.values)) > 1:
                _faint(axes, drawn.points, look)
            means = [Interval(value, math.nan, math.nan) for value in drawn.smooth]
            line(axes, drawn.points.steps, means, look, marked=_marked(len(means)))
            labels.append(Label(drawn.name, drawn.smooth[-1], look))
        if axis.reference is not None:
            rule = Look("ink", "", DASHES[4], width=1.0)
            axes.axhline(axis.reference, color=LIGHT["ink"], linewidth=rule.width, linestyle=rule.dash)
            labels.append(Label(axis.meaning, axis.reference, rule))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
        axes.margins(x=0.02)
        if axis.share:
            percent_axis(axes)
        if axis.from_zero:
            if min(value for one in lines for value in one.points.values) >= 0:  # an estimate of the KL may be below
                axes.set_ylim(bottom=0)
        elif axis.share and axis.reference is None:
            share_limits(axes)
        end_labels(axes, labels, max(one.points.steps[-1] for one in lines))
    return figure


def _faint(axes: Axes, points: Points, look: Look) -> None:
    axes.plot(
        points.steps,
        points.values,
        linestyle="",
        marker="o",
        markersize=2.4,
        markeredgewidth=0,
        color=LIGHT[look.colour],
        alpha=0.4,
        zorder=1,
    )


def _marked(count: int) -> list[int]:
    step = max(1, math.ceil(count / MARKERS))
    return list(range(count))[::-step][::-1]
