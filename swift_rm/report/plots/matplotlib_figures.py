"""The pictures of the charts: from plain figures to matplotlib's. What is written beside them is in ``report``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from swift_rm.evaluation.intervals import Interval
from swift_rm.files.text import shortened
from swift_rm.report.palette import LIGHT
from swift_rm.report.plots.axes_and_labels import (
    BOTTOM,
    DASHES,
    TEXT,
    TOP,
    Label,
    Look,
    band,
    canvas,
    dress,
    end_labels,
    last_known,
    line,
    percent_axis,
    plain_ticks,
    share_limits,
    sparse,
    whiskers,
)
from swift_rm.report.plots.chart import drawing
from swift_rm.report.plots.evaluation_json import LabelFigure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOOKS = {
    "oracle": Look("ink", "", DASHES[4], width=1.4),
    "swift_shrunk": Look("c1", "o", width=2.0),
    "swift_vote": Look("c3", "^", DASHES[1]),
    "swift_best": Look("c2", "s", DASHES[3]),
    "swift_borda": Look("c4", "D", DASHES[2], filled=False),
    "majority": Look("c5", "v", DASHES[1], filled=False),
}
FIRST = Look("ink", "", DASHES[3], width=1.2)
QUIET = Look("quiet", width=0.8)
SERIES = tuple(Look(f"c{1 + place % 5}", marker) for place, marker in enumerate(("o", "s", "^", "D", "v", "P", "X")))
DODGE = 1.035  # the factor between neighbouring whiskers of one number on a logarithmic axis


def accuracy_picture(
    curves: Mapping[str, Mapping[int, Interval]], first: Interval | None, axis: str, per_response: float
) -> Figure:
    """Draw the rules' curves over k, each k worth ``per_response`` on the axis; the known rules stand out."""
    n = max((k for curve in curves.values() for k in curve), default=1)
    sizes = sparse([2**power for power in range(n.bit_length()) if 2**power < n] + [n])
    with drawing():
        figure = canvas(right=150.0)
        axes = dress(figure.add_subplot(), axis, "accuracy (%)")
        axes.set_xscale("log", base=2 if per_response == 1 else 10)
        quiet = [curve for rule, curve in curves.items() if rule not in LOOKS]
        for curve in quiet:
            line(axes, [k * per_response for k in curve], list(curve.values()), QUIET)
        labels = []
        for rule in (rule for rule in LOOKS if rule in curves):
            look, ks, points = LOOKS[rule], list(curves[rule]), list(curves[rule].values())
            xs = [k * per_response for k in ks]
            (band if n > 1 else whiskers)(axes, xs, points, look)
            line(axes, xs, points, look, marked=[place for place, k in enumerate(ks) if k in sizes])
            labels.append(Label(_named(rule, points[-1]), last_known(points), look))
        if first is not None:
            axes.axhline(first.value, color=LIGHT["ink"], linewidth=FIRST.width, linestyle=FIRST.dash)
            whiskers(axes, [per_response], [first], FIRST)
            labels.append(Label(_named("first", first), first.value, FIRST))
        ends = [end for end in (last_known(list(curve.values())) for curve in quiet) if math.isfinite(end)]
        if ends:
            labels.append(Label(f"{len(quiet)} other baseline{'s' * (len(quiet) > 1)}", sum(ends) / len(ends), QUIET))
        percent_axis(axes)
        share_limits(axes)
        axes.set_xlim(per_response / 1.1, n * per_response * 1.1)
        ticks = [k * per_response for k in sizes]
        plain_ticks(axes, ticks, [f"{tick:.0f}" if tick >= 10 else f"{tick:.3g}" for tick in ticks])
        end_labels(axes, labels, n * per_response)
    return figure


def _named(rule: str, point: Interval) -> str:
    return f"{rule} {100 * point.value:.1f}" if math.isfinite(point.value) else rule


def layers_picture(layers: Sequence[int], reads: Mapping[str, Sequence[Interval]]) -> Figure:
    """Draw a line over the layers for each way a response's states are read."""
    with drawing():
        figure = canvas(right=112.0)
        axes = dress(figure.add_subplot(), "layer (0: the embeddings)", "AUROC within questions")
        axes.axhline(0.5, color=LIGHT["ink"], linewidth=1.0, linestyle=DASHES[4])
        labels = [Label("chance", 0.5, Look("ink", "", DASHES[4], width=1.0))]
        looks = (SERIES[0], Look("c2", "s", DASHES[1], filled=False))
        step = max(1, math.ceil(len(layers) / 12))
        marked = range(len(layers))[::-step]
        shift = 0.05 if step == 1 else 0.0
        for (read, points), look, places in zip(
            reads.items(), looks, ([k - shift for k in layers], [k + shift for k in layers]), strict=True
        ):
            (whiskers if step == 1 else band)(axes, places, points, look)
            line(axes, places, points, look, marked=sorted(marked))
            labels.append(Label(f"{read} state", last_known(points), look))
        plain_ticks(axes, [layers[place] for place in marked])
        axes.margins(x=0.03)
        share_limits(axes)
        end_labels(axes, labels, layers[-1] + 0.05)
    return figure


def calibration_picture(
    edges: Sequence[tuple[float, float]], responses: Sequence[int], chances: Sequence[float], shares: Sequence[Interval]
) -> Figure:
    """Draw the share of right responses against the mean probability of each bin, and below how many are in it."""
    look = SERIES[0]
    with drawing():
        figure = canvas(400.0, right=92.0)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1), gridspec_kw={"hspace": 0.1})
        dress(upper, "", "responses that are right (%)", grid="both")
        dress(lower, "mean probability of being right (%)", "responses")
        upper.plot([0, 1], [0, 1], color=LIGHT["ink"], linewidth=1.0, linestyle=DASHES[2])
        whiskers(upper, chances, shares, look)
        line(upper, chances, shares, look)
        widths = [0.94 * (high - low) for low, high in edges]
        lower.bar([low for low, _ in edges], responses, widths, align="edge", color=LIGHT[look.colour], linewidth=0)
        upper.set_xlim(-0.02, 1.02)
        upper.set_ylim(-0.02, 1.02)
        percent_axis(upper)
        plain_ticks(lower, [0, 0.2, 0.4, 0.6, 0.8, 1], ["0", "20", "40", "60", "80", "100"])
        upper.tick_params(labelbottom=False)
        lower.yaxis.get_major_locator().set_params(integer=True)
        figure.align_ylabels()
        end_labels(upper, [Label("calibrated", 1.0, Look("ink", "", DASHES[2], width=1.0))], 1.0)
    return figure


def labels_picture(figures: Sequence[LabelFigure]) -> Figure:
    """Draw the figures over the number of labelled questions, AUROC and accuracy apart, a line for each model and measure."""
    models = list(dict.fromkeys(one.model for one in figures))
    measures = list(dict.fromkeys(one.measure for one in figures))
    accuracies = [measure for measure in measures if measure != "AUROC"]
    chosen = {measure.partition(" of ")[2] for measure in accuracies}
    of = f" of {chosen.pop()}" if len(chosen) == 1 and "" not in chosen else ""
    panels = {"AUROC within questions": [measure for measure in measures if measure == "AUROC"], f"accuracy{of} (%)": accuracies}
    panels = {title: held for title, held in panels.items() if held}
    sizes = sorted({one.questions for one in figures})
    with drawing():
        figure = canvas(TOP + BOTTOM + 170.0 * len(panels), right=172.0)
        grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False, gridspec_kw={"hspace": 0.1})[:, 0]
        for axes, (title, held) in zip(grid, panels.items(), strict=True):
            dress(axes, "", title)
            axes.set_xscale("log")
            labels = []
            pairs = [(model, measure) for model in models for measure in held]
            for place, (model, measure) in enumerate(pairs):
                rows = [one for one in figures if (one.model, one.measure) == (model, measure)]
                series = SERIES[models.index(model) % len(SERIES)]
                second = held.index(measure)
                look = Look(series.colour, series.marker, DASHES[second % len(DASHES)], filled=not second)
                shift = DODGE ** (place - (len(pairs) - 1) / 2)
                xs, points = [one.questions * shift for one in rows], [one.figure for one in rows]
                whiskers(axes, xs, points, look)
                line(axes, xs, points, look)
                named = [shortened(model, 16)] * (len(models) > 1) + [measure.split()[0]] * (len(held) > 1)
                if rows and named:
                    labels.append(Label(", ".join(named), last_known(points), look))
            if title.endswith("(%)"):
                percent_axis(axes)
            share_limits(axes)
            end_labels(axes, labels, sizes[-1] * DODGE ** (len(pairs) / 2))
        grid[-1].set_xlabel("labelled questions trained on", fontsize=TEXT, color=LIGHT["ink"], labelpad=5)
        plain_ticks(grid[-1], sparse(sizes))
    return figure


def differences_picture(names: Sequence[str], points: Sequence[Interval], figures: Sequence[str]) -> Figure:
    """Draw a point with its interval for each difference, hollow where the interval holds zero, its figures beside it."""
    names = [shortened(name, 34) for name in names]
    places = range(len(names))[::-1]
    look = SERIES[0]
    with drawing():
        figure = canvas(TOP + BOTTOM + 22.0 * len(names) + 10.0, left=16.0 + 5.6 * max(map(len, names)), right=112.0)
        axes = dress(figure.add_subplot(), "difference in accuracy (points)", "", grid="x")
        axes.axvline(0, color=LIGHT["ink"], linewidth=1.0)
        whiskers(axes, places, points, look, across=True)
        for place, point, text in zip(places, points, figures, strict=True):
            clear = point.low > 0 or point.high < 0
            line(axes, [point.value], [Interval(place, math.nan, math.nan)], Look(look.colour, "o", filled=clear))
            axes.text(
                1.03,
                place,
                text,
                transform=axes.get_yaxis_transform(),
                fontsize=TEXT,
                color=LIGHT["ink"],
                verticalalignment="center_baseline",
            )
        axes.set_yticks(list(places), names)
        axes.tick_params(axis="y", length=0, labelcolor=LIGHT["ink"])
        axes.set_ylim(-0.7, len(names) - 0.3)
        axes.margins(x=0.08)
        axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:+.4g}".replace("-", "\u2212") if share else "0")
    return figure
