"""The charts of an evaluation, one function each, from the report's JSON alone.

The JSON is what ``swift-rm evaluate --json`` prints, as an object or the path of a file. "layers" may be added to it from
what ``swift-rm probe --out`` wrote, and "label_efficiency" from ``swift-rm train --label-curve``. Every function raises
ValueError with what is missing or not as expected, OSError for a file that cannot be read, and ImportError without
matplotlib. Shares are fractions of 1 in the tables and per cent in the pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from swift_rm.evaluation.intervals import Interval, percent, plain
from swift_rm.report.plots.chart import Chart
from swift_rm.report.plots.evaluation_json import (
    Report,
    curves_of,
    interval,
    intervals,
    label_figures,
    lacking,
    needed,
    number,
    objects,
    read_report,
)
from swift_rm.report.plots.matplotlib_figures import (
    LOOKS,
    accuracy_picture,
    calibration_picture,
    differences_picture,
    labels_picture,
    layers_picture,
)

BOUNDS = ("low", "high")
EVERY = 16  # curves are drawn at each k up to here, and at ever sparser ones beyond


def accuracy_by_n(data: Report) -> Chart:
    """Draw each rule's accuracy against the number of responses it chooses from, with intervals."""
    title = "Accuracy against the number of responses"
    return _accuracy(needed(data, "accuracy_by_n"), "accuracy_by_n", title, "responses per question", "responses", 1)


def accuracy_by_tokens(data: Report) -> Chart:
    """Draw each rule's accuracy against the tokens of the responses it chooses from, with intervals."""
    report = needed(data, "accuracy_by_tokens")
    tokens = number(report["tokens_per_response"], "tokens_per_response")
    title = "Accuracy against the tokens spent"
    return _accuracy(report, "accuracy_by_tokens", title, "tokens generated per question", "tokens", tokens)


def _accuracy(report: Mapping[str, Any], name: str, title: str, axis: str, unit: str, each: float) -> Chart:
    curves = {rule: curve for rule, curve in curves_of(report).items() if curve}
    n = max((k for curve in curves.values() for k in curve), default=0)
    if not n:
        raise ValueError('"curves" has no points')
    curves = {rule: {k: curve[k] for k in sorted(curve) if _drawn(k, n)} for rule, curve in curves.items()}
    first = (intervals(report["accuracy"], "accuracy") if report.get("accuracy") else {}).get("first")
    cells = [("first", each, *_numbers(first))] if first else []
    cells += [(rule, k * each, *_numbers(point)) for rule, curve in curves.items() for k, point in curve.items()]
    last = {rule: curve[n] for rule, curve in curves.items() if n in curve and math.isfinite(curve[n].value)}
    said = [f"{rule} {_said(percent(last[rule]))}" for rule in LOOKS if rule in last]
    said += [f"a single response {_said(percent(first))}"] if first else []
    others = [point.value for rule, point in last.items() if rule not in LOOKS]
    alt = f"With {n} response{'s' * (n > 1)} per question" + (f" ({n * each:.0f} tokens)" if unit == "tokens" else "")
    alt += f", accuracy in % with its interval: {', '.join(said)}." if said else ", no known rule has a figure."
    if others:
        alt += f" Other baselines ({len(others)}) reach {100 * min(others):.1f} to {100 * max(others):.1f} %."
    picture = accuracy_picture(curves, first, axis, each)
    return Chart(name, title, alt, ("rule", unit, "accuracy", *BOUNDS), tuple(cells), picture)


def _drawn(k: int, n: int) -> bool:
    return k <= EVERY or k == n or k & (k - 1) == 0 or k % (1 << (k.bit_length() - 4)) == 0


def auroc_by_layer(data: Report) -> Chart:
    """Draw the within-question AUROC of a linear probe of each layer, of the mean state and of the last, with intervals."""
    rows = objects(needed(data, "auroc_by_layer"), "layers", ("layer", "mean", "last"))
    layers = [int(number(row["layer"], f"layers[{i}].layer")) for i, row in enumerate(rows)]
    reads = {read: [interval(row[read], f"layers[{i}].{read}") for i, row in enumerate(rows)] for read in ("mean", "last")}
    said = []
    for read, points in reads.items():
        place = max(range(len(points)), key=lambda i: _or_least(points[i].value))
        said.append(f"{_said(plain(points[place]))} from the {read} state of layer {layers[place]}")
    alt = (
        f"A linear probe of each layer ranks a question's responses with an AUROC of at most {' and '.join(said)}; chance is 0.5."
    )
    cells = [(read, k, *_numbers(point)) for read, points in reads.items() for k, point in zip(layers, points, strict=True)]
    title, header = "AUROC within questions, by layer", ("state", "layer", "AUROC", *BOUNDS)
    return Chart("auroc_by_layer", title, alt, header, tuple(cells), layers_picture(layers, reads))


def calibration(data: Report) -> Chart:
    """Draw the share of right responses against their mean probability, with intervals, and the responses of each bin."""
    report = needed(data, "calibration")
    rows = objects(report, "calibration", ("low", "high", "responses", "probability", "right"))
    names = ("low", "high", "responses", "probability")
    low, high, sizes, chances = ([number(row[name], f"calibration[{i}].{name}") for i, row in enumerate(rows)] for name in names)
    shares = [interval(row["right"], f"calibration[{i}].right") for i, row in enumerate(rows)]
    responses = [int(size) for size in sizes]
    worst = max(range(len(rows)), key=lambda i: _or_least(abs(chances[i] - shares[i].value)))
    alt = (
        f"{sum(responses)} responses by their probability of being right, in {len(rows)} bins: "
        f"farthest from the diagonal are {responses[worst]} with a mean probability of {100 * chances[worst]:.1f} %, "
        f"of which {_said(percent(shares[worst]))} % are right."
    )
    if report.get("ece"):
        alt += f" The expected calibration error is {_said(plain(interval(report['ece'], 'ece')))}."
    edges = list(zip(low, high, strict=True))
    cells = [(*edges[i], responses[i], chances[i], *_numbers(share)) for i, share in enumerate(shares)]
    header = ("from", "to", "responses", "mean probability", "share right", *BOUNDS)
    picture = calibration_picture(edges, responses, chances, shares)
    return Chart("calibration", "Calibration of the probabilities", alt, header, tuple(cells), picture)


def label_efficiency(data: Report) -> Chart:
    """Draw AUROC and accuracy against the number of labelled questions trained on, a line for each language model."""
    figures = label_figures(needed(data, "label_efficiency"))
    said = []
    for model in dict.fromkeys(one.model for one in figures):
        rows = [one for one in figures if one.model == model and one.measure == figures[0].measure]
        if rows:
            ends = (f"{_said(plain(one.figure))} with {one.questions}" for one in (rows[0], rows[-1]))
            said.append(f"{f'{model}: ' * bool(model)}{rows[0].measure} {' labelled questions, '.join(ends)}")
    cells = [(one.model, one.measure, one.questions, *_numbers(one.figure)) for one in figures]
    header = ("model", "figure", "labelled questions", "value", *BOUNDS)
    title = "Figures against the number of labelled questions"
    return Chart("label_efficiency", title, f"{'; '.join(said)}.", header, tuple(cells), labels_picture(figures))


def differences(data: Report) -> Chart:
    """Draw the paired differences of two rules' accuracy as points with intervals about zero."""
    paired = intervals(needed(data, "differences")["paired"], "paired")
    names = [" \u2212 ".join(name.split("-")) if name.count("-") == 1 else name for name in paired]
    figures = [_said(percent(point, "+")) for point in paired.values()]
    said = [f"{name} {figure}" for name, figure in zip(names, figures, strict=True)]
    rest = f", and {len(said) - 6} more" if len(said) > 6 else ""
    alt = f"Differences in accuracy on the same questions, in points with their intervals: {', '.join(said[:6])}{rest}."
    cells = tuple((name, *_numbers(point)) for name, point in paired.items())
    picture = differences_picture(names, list(paired.values()), figures)
    return Chart("differences", "Paired differences in accuracy", alt, ("difference", "value", *BOUNDS), cells, picture)


CHARTS: Mapping[str, Callable[[Report], Chart]] = {
    "accuracy_by_n": accuracy_by_n,
    "accuracy_by_tokens": accuracy_by_tokens,
    "differences": differences,
    "calibration": calibration,
    "auroc_by_layer": auroc_by_layer,
    "label_efficiency": label_efficiency,
}


def charts(data: Report) -> list[Chart]:
    """Return all charts for which the report has the data."""
    report = read_report(data)
    return [draw(report) for name, draw in CHARTS.items() if lacking(report, name) is None]


def left_out(data: Report) -> list[str]:
    """Return a sentence for each chart for which the report has no data, with how to get them."""
    report = read_report(data)
    return [sentence for name in CHARTS if (sentence := lacking(report, name))]


def _numbers(point: Interval) -> tuple[float | None, float | None, float | None]:
    value, low, high = (number if math.isfinite(number) else None for number in (point.value, point.low, point.high))
    return value, low, high


def _said(figures: str) -> str:
    return figures.replace("-", "\u2212").replace("+nan", "nan").replace("nan", "\u2013")


def _or_least(value: float) -> float:
    return value if math.isfinite(value) else -math.inf
