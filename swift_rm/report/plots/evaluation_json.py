"""The report's JSON as the charts read it: what each needs, and what is wrong with it, in one sentence."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swift_rm.evaluation.intervals import Interval
from swift_rm.files.text import visible

Report = Mapping[str, Any] | str | Path

NEEDS = {
    "accuracy_by_n": ("curves", "`swift-rm evaluate --json` writes them"),
    "accuracy_by_tokens": ("tokens_per_response", "`swift-rm evaluate --json` writes it where responses have token ids"),
    "differences": ("paired", "they need rewards: `swift-rm score` writes them"),
    "calibration": ("calibration", "its bins need rewards or probabilities: `swift-rm score` writes them"),
    "auroc_by_layer": ("layers", "give what `swift-rm probe --out FILE` writes: `swift-rm evaluate --probe FILE`"),
    "label_efficiency": (
        "label_efficiency",
        "give what `swift-rm train --label-curve FILE` writes: `swift-rm evaluate --label-curve FILE`",
    ),
}
COUNTED = {"k": 1, "questions": 1, "layer": 0, "responses": 0}  # whole numbers in rows, with the least of each
MOST = 2**53  # what a float counts exactly
MEASURES = {"auroc": "AUROC", "shrunk": "shrunk mean", "best": "best"}


@dataclass(frozen=True)
class LabelFigure:
    """One figure of the label-efficiency curve: whose, what, with how many labelled questions."""

    model: str
    measure: str
    questions: int
    figure: Interval


def read_report(data: Report) -> Mapping[str, Any]:
    """Return the report, read if it is given as the path of a file."""
    given = data
    if isinstance(data, str | Path):
        try:
            given = json.loads(Path(data).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{data} is not JSON: {error}") from None
    if not isinstance(given, Mapping):
        raise ValueError(f"a report is a JSON object, as `swift-rm evaluate --json` prints it, got {_short(given)}")
    return given


def lacking(report: Mapping[str, Any], chart: str) -> str | None:
    """Return the sentence that says what a chart has not got, or None."""
    key, how = NEEDS[chart]
    keys = ("curves", "tokens_per_response") if chart == "accuracy_by_tokens" else (key,)
    absent = [key for key in keys if not report.get(key)]
    return f'no chart "{chart}": the report has no "{absent[0]}"; {how}' if absent else None


def needed(data: Report, chart: str) -> Mapping[str, Any]:
    """Return the report; raise ValueError if it has not got what the chart needs."""
    report = read_report(data)
    if sentence := lacking(report, chart):
        raise ValueError(sentence)
    return report


def objects(report: Mapping[str, Any], key: str, names: Sequence[str]) -> list[Mapping[str, Any]]:
    """Return a list of objects that have all these names, and whole numbers where they count something."""
    rows = report[key]
    if not isinstance(rows, list):
        raise ValueError(f'"{key}" must be a list, got {_short(rows)}')
    for place, row in enumerate(rows):
        if missing := [name for name in names if not isinstance(row, Mapping) or name not in row]:
            raise ValueError(f'"{key}[{place}]" has no "{missing[0]}": {_short(row)}')
        for name in COUNTED.keys() & set(names):
            _check_count(row[name], f"{key}[{place}].{name}", COUNTED[name])
    return rows


def number(given: Any, where: str) -> float:
    """Return a finite number; raise ValueError for anything else, and for what no float can hold."""
    try:
        value = math.nan if isinstance(given, bool) or not isinstance(given, int | float) else float(given)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise ValueError(f'"{where}" must be a number, got {_short(given)}')
    return value


def interval(given: Any, where: str) -> Interval:
    """Return the numbers value, low and high, NaN for null and what is not finite."""
    if not isinstance(given, Mapping) or any(name not in given for name in ("value", "low", "high")):
        raise ValueError(f'"{where}" must have the numbers value, low and high, got {_short(given)}')
    value, low, high = (_figure(given[name], f"{where}.{name}") for name in ("value", "low", "high"))
    return Interval(value, low, high)


def _figure(given: Any, where: str) -> float:
    if given is None or (isinstance(given, float) and not math.isfinite(given)):
        return math.nan
    return number(given, where)


def intervals(given: Any, where: str) -> dict[str, Interval]:
    """Return the intervals of an object by name, the names made visible."""
    if not isinstance(given, Mapping):
        raise ValueError(f'"{where}" must be an object, got {_short(given)}')
    return {visible(str(name)): interval(row, f"{where}.{name}") for name, row in given.items()}


def curves_of(report: Mapping[str, Any]) -> dict[str, dict[int, Interval]]:
    """Return the points of every rule's curve by k, the rules in the order of the report."""
    given = report["curves"]
    if not isinstance(given, Mapping):
        raise ValueError(f'"curves" must be an object, got {_short(given)}')
    found = {}
    for rule, rows in given.items():
        where = f"curves.{rule}"
        points = objects({where: rows}, where, ("k",))
        found[visible(str(rule))] = {int(row["k"]): interval(row, f"{where}[{i}]") for i, row in enumerate(points)}
    return found


def label_figures(report: Mapping[str, Any]) -> list[LabelFigure]:
    """Return the figures of the label-efficiency curve, by model, measure and number of questions.

    A row's keys are "questions", optionally "model", and "auroc", "best" and "shrunk", these two perhaps with "_of_16".
    """
    found = []
    rows = objects(report, "label_efficiency", ("questions",))
    for place, row in enumerate(rows):
        where = f"label_efficiency[{place}]"
        questions = int(row["questions"])
        for key, given in row.items():
            kind, _, n = key.partition("_of_")
            if kind in MEASURES:
                measure = MEASURES[kind] + (f" of {n}" if n else "")
                found.append(
                    LabelFigure(visible(str(row.get("model") or "")), measure, questions, interval(given, f"{where}.{key}"))
                )
    if not found:
        raise ValueError('"label_efficiency" has no row with "auroc", "best" or "shrunk"')
    order = list(MEASURES.values())
    models = list(dict.fromkeys(one.model for one in found))
    return sorted(found, key=lambda one: (models.index(one.model), order.index(one.measure.partition(" of ")[0]), one.questions))


def _check_count(given: Any, where: str, least: int) -> None:
    whole = number(given, where)
    if not whole.is_integer() or not least <= whole <= MOST:
        most = f" to {MOST:,}" if whole > MOST else ""
        raise ValueError(f'"{where}" must be a whole number from {least}{most}, got {_short(given)}')


def _short(given: Any) -> str:
    text = repr(given)
    return text if len(text) <= 80 else f"{text[:79]}\u2026"
