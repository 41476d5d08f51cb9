"""Compare two reward models, or two rules, on the same questions: paired differences, and where the two disagree.

A question's value may lie between right, 1, and wrong, 0, see ``sides``. It counts in parts then: both are right by the
smaller of the two values, as if one coin decided for both, which is the least disagreement that the values allow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from swift_rm.evaluation.intervals import Interval, Resamples
from swift_rm.evaluation.paired_questions import Matched
from swift_rm.evaluation.rule_outcome import ChosenResponse, RuleOutcome
from swift_rm.records.rollouts import finite

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class CurvePoint:
    """Accuracy of A, of B, and their difference, with k responses a question."""

    k: int
    a: Interval
    b: Interval
    difference: Interval

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON objects."""
        return {"k": self.k, "a": self.a.to_dict(), "b": self.b.to_dict(), "difference": self.difference.to_dict()}


@dataclass(frozen=True)
class AgreementTable:
    """How many questions both answer right, only one, or none, in parts where a value is between 0 and 1: ``parted``."""

    both_right: float
    only_a: float
    only_b: float
    both_wrong: float
    parted: int


@dataclass(frozen=True)
class Disagreement:
    """A question, by its place, on which the two choose answers that differ or are worth different values."""

    question: int
    a: ChosenResponse
    b: ChosenResponse


@dataclass(frozen=True)
class Aurocs:
    """AUROC within questions of the scores that A and B go by, and A - B; None where there is no such score."""

    a: Interval | None
    b: Interval | None
    difference: Interval | None

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON objects."""
        figures = {"a": self.a, "b": self.b, "difference": self.difference}
        return {name: None if figure is None else figure.to_dict() for name, figure in figures.items()}


@dataclass(frozen=True)
class Comparison:
    """The figures of :func:`compare`; ``by_k`` is at the powers of two and at n."""

    matched: Matched
    a: RuleOutcome
    b: RuleOutcome
    by_k: Sequence[CurvePoint]
    table: AgreementTable
    auroc_within: Aurocs
    disagreements: Sequence[Disagreement]

    @property
    def lead_changes(self) -> list[tuple[int, int]]:
        """Return the pairs of k in ``by_k`` between which the lead passes from one to the other.

        A difference that is 0.0 points when rounded is no lead.
        """
        signs = [(point.k, np.sign(round(point.difference.value, 3))) for point in self.by_k]
        leads = [(k, sign) for k, sign in signs if sign]
        return [(k, later) for (k, sign), (later, other) in pairwise(leads) if sign != other]

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as one JSON object; each figure is {value, low, high}.

        ``questions``, ``n``; ``a`` and ``b``: {file, rule, accuracy, tokens_per_question, only_here (questions that only
        this file holds), unscored}; ``difference``, of their accuracies at n; ``responses``: {same, shared, of};
        ``table``: {both_right, only_a, only_b, both_wrong, parted}; ``by_k``: [{k, a, b, difference}]; ``lead_changes``:
        [[k, later k]]; ``auroc_within``: {a, b, difference}, null where a rule goes by no score; ``disagreements``:
        [{question_id, a, b}], all of them, of which ``a`` and ``b`` are {answer, right, reward, place}.
        """
        at_n = self.by_k[-1]
        value = {
            "questions": len(self.matched.names),
            "n": self.matched.n,
            "a": {**self.a.to_dict(), "accuracy": at_n.a.to_dict(), "only_here": self.matched.only_a},
            "b": {**self.b.to_dict(), "accuracy": at_n.b.to_dict(), "only_here": self.matched.only_b},
            "difference": at_n.difference.to_dict(),
            "responses": {
                "same": self.matched.same,
                "shared": self.matched.shared,
                "of": len(self.matched.names) * self.matched.n,
            },
            "table": asdict(self.table),
            "by_k": [point.to_dict() for point in self.by_k],
            "lead_changes": [list(change) for change in self.lead_changes],
            "auroc_within": self.auroc_within.to_dict(),
            "disagreements": [
                {"question_id": self.matched.names[one.question], "a": one.a.to_dict(), "b": one.b.to_dict()}
                for one in self.disagreements
            ],
        }
        return dict(finite(value))


def compare(
    matched: Matched, a: RuleOutcome, b: RuleOutcome, *, bootstrap: int = 2000, seed: int = 0, confidence: float = 0.95
) -> Comparison:
    """Compare two sides measured on the matched questions; one set of resampled questions serves all intervals."""
    questions, n = a.values.shape
    resamples = Resamples(questions, bootstrap=bootstrap, seed=seed, confidence=confidence)
    sizes = sorted({2**power for power in range(n.bit_length())} | {n})
    columns = np.array(sizes) - 1
    values_a, values_b = a.values[:, columns], b.values[:, columns]
    differences = (values_a - values_b).round(12) + 0.0  # where rules that must agree, as at k = 1, add in another order
    figures = [resamples.intervals(resamples.ratio(values)) for values in (values_a, values_b, differences)]
    return Comparison(
        matched, a, b,
        [CurvePoint(*row) for row in zip(sizes, *figures, strict=True)],
        agreement_table(a.values[:, -1], b.values[:, -1]),
        _aurocs(a, b, resamples),
        disagreements(a.choices, b.choices),
    )  # fmt: skip


def agreement_table(a: Floats, b: Floats) -> AgreementTable:
    """Count the questions by who answers them right; ``a`` and ``b`` are the values at n, [Q]."""
    a, b = a.round(9), b.round(9)  # sums of weights that add up to 1 but for rounding
    parted = ((a > 0) & (a < 1)) | ((b > 0) & (b < 1))
    both, only_a, only_b = np.minimum(a, b), np.maximum(a - b, 0), np.maximum(b - a, 0)
    neither = 1 - np.maximum(a, b)
    return AgreementTable(float(both.sum()), float(only_a.sum()), float(only_b.sum()), float(neither.sum()), int(parted.sum()))


def disagreements(a: Sequence[ChosenResponse], b: Sequence[ChosenResponse]) -> list[Disagreement]:
    """Return the questions on which two sides disagree, those with the largest difference of values first."""
    pairs = [Disagreement(place, *pair) for place, pair in enumerate(zip(a, b, strict=True))]
    found = [pair for pair in pairs if pair.a.answer != pair.b.answer or pair.a.value != pair.b.value]
    return sorted(found, key=lambda pair: -abs(pair.a.value - pair.b.value))


def _aurocs(a: RuleOutcome, b: RuleOutcome, resamples: Resamples) -> Aurocs:
    def figure(aurocs: Floats | None) -> Floats | None:
        if aurocs is None or np.isnan(aurocs).all():
            return None
        return resamples.ratio(np.nan_to_num(aurocs), (~np.isnan(aurocs)).astype(np.float64))

    first, second = figure(a.aurocs), figure(b.aurocs)
    difference = None if first is None or second is None else first - second
    return Aurocs(*(None if one is None else resamples.interval(one) for one in (first, second, difference)))
