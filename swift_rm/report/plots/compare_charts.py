"""The charts of a comparison, one function each, from the JSON that ``swift-rm compare --json`` prints.

Each raises ImportError without matplotlib.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swift_rm.evaluation.intervals import Interval
from swift_rm.files.text import counted, shortened, visible
from swift_rm.report.palette import LIGHT
from swift_rm.report.plots.axes_and_labels import (
    DASHES,
    Label,
    Look,
    canvas,
    dress,
    end_labels,
    line,
    percent_axis,
    plain_ticks,
    whiskers,
)
from swift_rm.report.plots.chart import Chart, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOOKS = {"a": Look("c1", "o", width=2.0), "b": Look("c2", "s", DASHES[1])}
DIFFERENCE = Look("ink", "D", filled=False)
APART = 1.04  # what A's places on the logarithmic axis are divided by, and B's multiplied, so that no interval hides another


def accuracy_by_k(data: Mapping[str, Any]) -> Chart:
    """Draw the accuracy of A and of B against the number of responses they choose from, with intervals."""
    names, by_rule = side_names(data), data["a"]["rule"] != data["b"]["rule"]
    sizes = _sizes(data)
    with drawing():
        figure = canvas()
        axes = _by_size(figure.add_subplot(), sizes, "accuracy (%)")
        labels = []
        for side, shift in (("a", 1 / APART), ("b", APART)):
            points, places = _points(data, side), [k * shift for k in sizes]
            whiskers(axes, places, points, LOOKS[side])
            line(axes, places, points, LOOKS[side])
            name = f"{side.upper()}: {data[side]['rule']}" if by_rule else names[side]
            labels.append(Label(shortened(visible(name)), points[-1].value, LOOKS[side]))
        percent_axis(axes)
        end_labels(axes, labels, sizes[-1] * APART)
    said = [f"{visible(names[side])} goes from {_ends(data, side)}" for side in ("a", "b")]
    return Chart(
        "accuracy_by_k",
        "Accuracy of A and of B against the number of responses",
        f"{said[0]}, {said[1]}, with {_numbers(sizes)} a question.",
        ("side", "responses", "accuracy", "low", "high"),
        tuple((side.upper(), *row) for side in ("a", "b") for row in _rows(data, side)),
        figure,
    )


def difference_by_k(data: Mapping[str, Any]) -> Chart:
    """Draw the paired difference of A's accuracy and B's against the number of responses, with intervals about zero."""
    sizes, points = _sizes(data), _points(data, "difference")
    with drawing():
        figure = canvas(210.0)
        axes = _by_size(figure.add_subplot(), sizes, "A \u2212 B (points)")
        axes.axhline(0, color=LIGHT["quiet"], linewidth=1.0)
        whiskers(axes, sizes, points, DIFFERENCE)
        line(axes, sizes, points, DIFFERENCE)
        percent_axis(axes)
        end_labels(axes, [Label("A \u2212 B", points[-1].value, DIFFERENCE)], sizes[-1])
    last = points[-1]
    changes = [f"between {k} and {later}" for k, later in data["lead_changes"]]
    lead = f"the lead changes {' and '.join(changes)} responses" if changes else "the lead does not change"
    return Chart(
        "difference_by_k",
        "Accuracy of A less that of B, against the number of responses",
        f"With {counted(sizes[-1], 'response')} the difference is {100 * last.value:+.1f} points, "
        f"interval {100 * last.low:+.1f} to {100 * last.high:+.1f}; {lead}.".replace("-", "\u2212"),
        ("responses", "A \u2212 B", "low", "high"),
        tuple(_rows(data, "difference")),
        figure,
    )


def side_names(data: Mapping[str, Any]) -> dict[str, str]:
    """Return what tells A from B: their rules, or their files, or both."""
    a, b = data["a"], data["b"]
    if a["file"] == b["file"]:
        return {"a": f"A: {a['rule']}", "b": f"B: {b['rule']}"}
    files = [Path(side["file"]).name for side in (a, b)]
    if files[0] == files[1]:
        files = [a["file"], b["file"]]
    if a["rule"] == b["rule"]:
        return {"a": f"A: {files[0]}", "b": f"B: {files[1]}"}
    return {"a": f"A: {files[0]}, {a['rule']}", "b": f"B: {files[1]}, {b['rule']}"}


def _by_size(axes: Axes, sizes: Sequence[int], y: str) -> Axes:
    dress(axes, "responses per question", y)
    axes.set_xscale("log")
    plain_ticks(axes, sizes)
    return axes


def _sizes(data: Mapping[str, Any]) -> list[int]:
    return [int(row["k"]) for row in data["by_k"]]


def _numbers(sizes: Sequence[int]) -> str:
    return f"{f'{sizes[0]} and ' if len(sizes) > 1 else ''}{counted(sizes[-1], 'response')}"


def _points(data: Mapping[str, Any], name: str) -> list[Interval]:
    return [Interval(**row[name]) for row in data["by_k"]]


def _rows(data: Mapping[str, Any], name: str) -> list[tuple[int, float, float, float]]:
    return [(k, point.value, point.low, point.high) for k, point in zip(_sizes(data), _points(data, name), strict=True)]


def _ends(data: Mapping[str, Any], side: str) -> str:
    first, last = (_points(data, side)[place] for place in (0, -1))
    return f"{100 * first.value:.1f} % to {100 * last.value:.1f} %"
