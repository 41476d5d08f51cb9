"""The rows of the table of heads, what they say of the default head, and the table as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.heads.head_variants import DEFAULT
from benchmarks.heads.question_figures import FIGURES, Floats
from benchmarks.text_table import shown
from swift_rm.evaluation.intervals import SeedResamples, pooled

DECIDING = ("auroc", "best_of_16")  # what the verdict goes by; of the other figures the table tells
Row = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """One head in one setting: its figures [S, Q] by name, how many numbers it has, the seconds that training took."""

    figures: Mapping[str, Floats]
    parameters: int
    seconds: float


@dataclass(frozen=True)
class Setting:
    """One model at one difficulty: its heads by name, resamples of its seeds and questions, and facts for the result."""

    name: str
    heads: Mapping[str, Measured]
    resamples: SeedResamples
    facts: Mapping[str, Any]


def table(settings: Sequence[Setting], rivals: Sequence[str], default: str = DEFAULT) -> list[Row]:
    """Return a row for each head: its figures and their differences to the default, pooled and in each setting."""
    rows = []
    for name in settings[0].heads:
        rows.append(
            {
                "head": name,
                "kind": "rival" if name in rivals else "head",
                "parameters": {setting.name: setting.heads[name].parameters for setting in settings},
                "seconds": {setting.name: round(setting.heads[name].seconds, 3) for setting in settings},
                "pooled": _figures(settings, name, default),
                "settings": {setting.name: _figures([setting], name, default) for setting in settings},
            }
        )
    return rows


def verdict(rows: Sequence[Row], name: str = DEFAULT) -> Row:
    """Say which head wins, whether the default is at least as good as each rival, and which heads of its size are better.

    The best head is that of the highest pooled AUROC among those no larger than the default. The default is at least as
    good unless the interval of the pooled difference (default minus rival) lies below 0; ``below_in`` names the settings in
    which it does. A head is better than the default where the pooled interval lies above 0 by AUROC and not below 0 by the
    best of 16.
    """
    default = next(row for row in rows if row["head"] == name)
    same_size = [row for row in rows if row["kind"] == "head" and _largest(row) <= _largest(default)]
    best_size, best_all = (max(some, key=lambda row: row["pooled"]["auroc"]["value"]) for some in (same_size, rows))
    against = {row["head"]: _default_minus(row) for row in rows if row["kind"] == "rival"}
    better = {
        row["head"]: {name: row["pooled"]["difference"][name] for name in DECIDING}
        for row in same_size
        if _side(row["pooled"]["difference"]["auroc"]) > 0 and _side(row["pooled"]["difference"]["best_of_16"]) >= 0
    }
    return {
        "best_head": best_size["head"],
        "best_of_all": best_all["head"],
        "default_at_least": against,
        "goal_met": all(one["met"] for one in against.values()),
        "better_than_default": better,
    }


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """Return the table as texts: pooled figures in per cent, and the differences of the AUROC in each setting."""
    names = list(rows[0]["settings"])
    header = ["head", "parameters", "seconds", "AUROC", "best of 16", "vote of 16", "AUROC - default", "best of 16 - default"]
    lines = [[*header, *(f"AUROC - default, {name}" for name in names)]]
    for row in sorted(rows, key=lambda row: -row["pooled"]["auroc"]["value"]):
        own, differences = row["pooled"], row["pooled"]["difference"]
        lines.append(
            [
                row["head"], "/".join(str(count) for count in dict.fromkeys(row["parameters"].values())),
                f"{sum(row['seconds'].values()) / len(names):.2f}",
                *(shown(own[name]) for name in ("auroc", "best_of_16", "vote_of_16")),
                *(shown(differences[name], signed=True) for name in DECIDING),
                *(shown(row["settings"][name]["difference"]["auroc"], signed=True) for name in names),
            ]
        )  # fmt: skip
    return lines


def _figures(settings: Sequence[Setting], name: str, reference: str) -> Row:
    resamples = [setting.resamples for setting in settings]
    own = {key: [setting.heads[name].figures[key] for setting in settings] for key in FIGURES}
    default = {key: [setting.heads[reference].figures[key] for setting in settings] for key in FIGURES}
    differences = {key: [a - b for a, b in zip(own[key], default[key], strict=True)] for key in FIGURES}
    return {
        **{key: pooled(resamples, values).to_dict() for key, values in own.items()},
        "difference": {key: pooled(resamples, values).to_dict() for key, values in differences.items()},
    }


def _default_minus(row: Row) -> Row:
    turned = {name: _negative(row["pooled"]["difference"][name]) for name in DECIDING}
    below = [
        f"{setting}, {name}"
        for setting, figures in row["settings"].items()
        for name in DECIDING
        if _side(figures["difference"][name]) > 0
    ]
    return {**turned, "met": all(_side(one) >= 0 for one in turned.values()), "below_in": below}


def _negative(interval: Mapping[str, float | None]) -> dict[str, float | None]:
    value, low, high = (None if interval[key] is None else -interval[key] for key in ("value", "high", "low"))  # type: ignore[operator]
    return {"value": value, "low": low, "high": high}


def _side(interval: Mapping[str, float | None]) -> int:
    """Return 1 if the whole interval lies above 0, -1 if below, else 0."""
    low, high = interval["low"], interval["high"]
    return 0 if low is None or high is None else int(low > 0) - int(high < 0)


def _largest(row: Row) -> int:
    return max(row["parameters"].values())
