"""What is logged of each training step of a hybrid model, from its rollouts."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING, Any

from swift_rm.hipo.response.template import (
    CUT,
)
from swift_rm.hipo.rewards.reward_function import RewardedBatch
from swift_rm.hipo.rollouts.reward_drift import drift

if TYPE_CHECKING:
    from swift_rm.hipo.response.template import Parsed


STEPS = 10

__all__ = ["LEAK_FACTOR", "ModeHistory", "Row", "step_metrics"]

LEAK_FACTOR = 2.0  # of what follows </think> after thinking: a longer answer without thinking is taken to hold reasoning


@dataclass(frozen=True)
class Row:
    """What is known of one rollout: its parsed ids, ``length`` in tokens, and figures, each None (or NaN) if unknown.

    ``difficulty`` is the data set's own word for the question. ``accuracy`` is 1 for right and 0 for wrong,
    ``probability`` is what the hidden-state reward model says of it, and ``labelled`` whether its label may be used to
    watch that model.
    """

    question_id: str
    difficulty: str | None
    parsed: Parsed
    length: int
    accuracy: float | None
    reward: float | None
    probability: float | None
    labelled: bool


def step_metrics(rows: Sequence[Row], leak_factor: float = LEAK_FACTOR) -> dict[str, float]:
    """Return the figures of a step by the names they are logged under; those without data are left out.

    Shares are fractions of 1, lengths are means in tokens, and all tokens of a response are counted, those of the judge
    block too:

    - ``hipo/accuracy``: a malformed response is wrong; where only some others have a label, these stand for all.
    - ``hipo/format``, ``hipo/cut``: the share that is well formed, and the one cut at the length limit.
    - ``hipo/tokens`` in all, ``_judge`` up to the mode marker, ``_think`` of the think block, ``_answer`` of the rest.
    - ``hipo/think_rate``: the think-on share of the responses that have a mode. It and the accuracy also come as
      ``.../<difficulty>``.
    - ``hipo/think_off_answer_tokens`` and ``..._max``: all that follows the marker of a think-off response, well formed
      or not, as reasoning that leaks there may well run into the length limit.
    - ``hipo/leak_share``: of the well-formed think-off answers, those longer than ``leak_factor`` times the mean of what
      follows ``</think>`` in the step's well-formed think-on responses.
    - ``hipo/skipped``: how many responses had no reward, and took no part.
    - ``hipo/drift_auroc``, ``hipo/hacking_gap``, ``hipo/drift_rows``: see :func:`swift_rm.hipo.rollouts.reward_drift.drift`, of
      the well-formed responses, as a malformed one is not rewarded by its probability.
    """
    if not rows:
        return {}
    found: dict[str, float | None] = {
        "hipo/accuracy": _accuracy(rows),
        "hipo/format": fmean(row.parsed.formatted for row in rows),
        "hipo/cut": fmean(row.parsed.error == CUT for row in rows),
        "hipo/tokens": fmean(row.length for row in rows),
        "hipo/tokens_judge": fmean(row.parsed.decision for row in rows),
        "hipo/tokens_think": fmean(row.parsed.think_tokens for row in rows),
        "hipo/tokens_answer": fmean(row.parsed.answer_tokens for row in rows),
        "hipo/think_rate": _think_rate(rows),
        "hipo/skipped": float(sum(not _known(row.reward) for row in rows)),
        **_think_off(rows, leak_factor),
        **drift(row for row in rows if row.parsed.formatted),
    }
    for difficulty in sorted({row.difficulty for row in rows if row.difficulty is not None}):
        some = [row for row in rows if row.difficulty == difficulty]
        found[f"hipo/think_rate/{difficulty}"] = _think_rate(some)
        found[f"hipo/accuracy/{difficulty}"] = _accuracy(some)
    return {name: value for name, value in found.items() if value is not None}


def _accuracy(rows: Sequence[Row]) -> float | None:
    formed = [row for row in rows if row.parsed.formatted]
    of_formed = _mean(row.accuracy for row in formed)
    if of_formed is None:
        return None if formed else 0.0
    return of_formed * len(formed) / len(rows)


def _think_rate(rows: Sequence[Row]) -> float | None:
    return _mean(float(row.parsed.mode == "on") for row in rows if row.parsed.mode is not None)


def _think_off(rows: Sequence[Row], leak_factor: float) -> dict[str, float | None]:
    after_marker = [float(row.length - row.parsed.decision) for row in rows if row.parsed.mode == "off"]
    formed = [row.parsed for row in rows if row.parsed.formatted]
    allowed = _mean(leak_factor * parsed.answer_tokens for parsed in formed if parsed.mode == "on")
    leaks = [parsed.answer_tokens > allowed for parsed in formed if parsed.mode == "off"] if allowed is not None else []
    return {
        "hipo/think_off_answer_tokens": _mean(after_marker),
        "hipo/think_off_answer_tokens_max": max(after_marker, default=None),
        "hipo/leak_share": _mean(map(float, leaks)),
    }


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return fmean(known) if known else None


class ModeHistory:
    """The last think rates, and the mean absolute change between them.

    A model whose choice is not settled swings between the modes while its mean rate looks calm.
    """

    def __init__(self, rates: Iterable[float] = (), steps: int = STEPS) -> None:
        if steps < 1:
            raise ValueError(f"the oscillation is over at least 1 change of the think rate, got {steps}")
        self._rates: deque[float] = deque(rates, maxlen=steps + 1)

    @classmethod
    def from_log(cls, log: Iterable[Mapping[str, Any]], steps: int = STEPS) -> ModeHistory:
        """Return the history that a resumed run has behind it, from the trainer's ``state.log_history``."""
        rates = (entry.get("hipo/think_rate") for entry in log)
        return cls((float(rate) for rate in rates if rate is not None), steps)

    def step(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Note a step's ``hipo/think_rate``, if it has one, and return the oscillation by its name; nothing before 2 steps."""
        if "hipo/think_rate" in metrics:
            self._rates.append(metrics["hipo/think_rate"])
        if len(self._rates) < 2:
            return {}
        return {"hipo/think_rate_oscillation": fmean(abs(later - rate) for rate, later in pairwise(self._rates))}


def rows_of(inputs: Sequence[Mapping[str, Any]], judged: RewardedBatch) -> list[Row]:
    """Return what the metrics read of each response; what is not known is None."""

    def known(value: float) -> float | None:
        return None if value != value else value

    return [
        Row(
            question_id=str(row["question_id"]),
            difficulty=None if row.get("difficulty") is None else str(row["difficulty"]),
            parsed=parsed,
            length=parsed.decision + parsed.think_tokens + parsed.answer_tokens,
            accuracy=known(accuracy),
            reward=known(reward),
            probability=known(probability),
            labelled=labelled,
        )
        for row, parsed, accuracy, reward, probability, labelled in zip(
            inputs, judged.parsed, judged.accuracy, judged.rewards, judged.probability, judged.labelled, strict=True
        )
    ]
