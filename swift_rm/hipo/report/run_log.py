"""The log of a training run: what transformers' Trainer keeps in ``trainer_state.json``, as one series a figure."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

FILE = "trainer_state.json"
PREFIX = "hipo/"
LAST = 2**53  # steps beyond it no axis can tell apart


@dataclass(frozen=True)
class Points:
    """One figure of a run: its values, finite, at ascending steps."""

    steps: Sequence[int]
    values: Sequence[float]

    def ends(self) -> tuple[float, float]:
        """Return the mean of the first tenth of the points, at least one, and of the last."""
        tenth = math.ceil(len(self.values) / 10)
        return fmean(self.values[:tenth]), fmean(self.values[-tenth:])


@dataclass(frozen=True)
class History:
    """A run's figures by the names they were logged under; ``source`` is the file they come from."""

    source: Path
    series: Mapping[str, Points]

    @property
    def steps(self) -> tuple[int, int, int]:
        """Return the first and the last step with figures of HiPO, and how many there are."""
        known = sorted({step for name, points in self.series.items() if name.startswith(PREFIX) for step in points.steps})
        return known[0], known[-1], len(known)

    def levels(self, name: str) -> list[str]:
        """Return the difficulties by which a figure was logged too, "2 steps" before "10 steps"."""
        start = f"{name}/"
        found = [key.removeprefix(start) for key in self.series if key.startswith(start)]
        return sorted(found, key=_order)


def run_log(folder: str | Path) -> History:
    """Read the log of a run's folder, or of its last checkpoint if that is further on; the path of the file will do as well.

    A step that was logged twice, as after a resumption, counts as logged last; what is not a finite number is no point.
    Raises OSError if there is no log, ValueError if it is damaged or not of a HiPO run.
    """
    path = _find(Path(folder))
    state = _read(path)
    log = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(log, list) or not all(isinstance(entry, dict) for entry in log):
        raise ValueError(f'{path} is not a trainer\'s state: it has no "log_history", a list of objects')
    series = _series(log)
    if not any(name.startswith(PREFIX) for name in series):
        raise ValueError(f'{path} has no figures of a HiPO run (their names begin with "{PREFIX}") in its {len(log)} log entries')
    return History(path, series)


def _find(folder: Path) -> Path:
    if folder.is_file():
        return folder
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no run at {folder}: give the output folder of a HiPO run")
    numbered = [(int(match[1]), one) for one in folder.iterdir() if (match := re.fullmatch(r"checkpoint-([0-9]+)", one.name))]
    written = [(number, one / FILE) for number, one in sorted(numbered, reverse=True) if (one / FILE).is_file()]
    if (folder / FILE).is_file():
        state = _read(folder / FILE)
        reached = state.get("global_step") if isinstance(state, dict) else None
        further = written and isinstance(reached, int) and written[0][0] > reached  # it was gone on with, and stopped
        return written[0][1] if further else folder / FILE
    if written:
        return written[0][1]
    raise FileNotFoundError(f"{folder} holds no {FILE}, nor does a checkpoint-* in it: give the output folder of a HiPO run")


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: it is not JSON ({error})") from None


def _series(log: Sequence[Mapping[str, Any]]) -> dict[str, Points]:
    found: dict[str, dict[int, float]] = {}
    for entry in log:
        step = entry.get("step")
        if not isinstance(step, int) or isinstance(step, bool) or abs(step) > LAST:
            continue
        for name, value in entry.items():
            if name != "step" and isinstance(value, int | float) and not isinstance(value, bool) and _finite(value):
                found.setdefault(name, {})[step] = float(value)
    return {name: Points(*zip(*sorted(points.items()), strict=True)) for name, points in found.items()}


def _finite(value: float) -> bool:
    return abs(value) < 1e300  # a whole number of JSON may be larger than any float


def _order(level: str) -> list[tuple[bool, int, str]]:
    """Return what sorts names by the numbers in them; digits are ASCII's, since "\u00b2" is one that is no number."""
    parts = [part for part in re.split(r"([0-9]{1,15})", level) if part]
    return [(True, int(part), "") if part[0] in "0123456789" else (False, 0, part) for part in parts]
