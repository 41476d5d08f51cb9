"""Choose among one question's candidates: the best reward, votes, shrunk means, Borda counts, fusion with a second reward.

Pure functions of plain numbers and strings. A reward or weight of None or NaN means "not scored", an answer of None "no
answer found". Ties go to the candidate, or the answer, that came first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from swift_rm.selection.rule_table import EXTERNAL_RULES, RULES

Scores = Sequence[float | None] | npt.NDArray[np.float64]
Answers = Sequence[str | None]

BORDA_POWER = 0.5
SHRINKAGE = 2.0


@dataclass(frozen=True)
class Selection:
    """The chosen candidate: its position among the candidates and its answer (None where it has none)."""

    index: int
    answer: str | None


def best(rewards: Scores) -> int:
    """Return the position of the highest reward, the first of equals; NaN is never chosen.

    Raises ValueError, with the number of candidates, if none has a reward.
    """
    values = _floats(rewards)
    scored = np.flatnonzero(~np.isnan(values))
    if not scored.size:
        raise ValueError(f"nothing to choose from: none of the {len(values)} candidates has a reward")
    return int(scored[np.argmax(values[scored])])


def majority_vote(answers: Answers) -> str | None:
    """Return the most frequent answer (self-consistency, arXiv 2203.11171); None if no candidate has an answer."""
    return weighted_vote([1.0] * len(answers), answers)


def weighted_vote(weights: Scores, answers: Answers) -> str | None:
    """Return the answer with the largest sum of weights; NaN weights and None answers do not vote.

    Returns None if nobody votes. Raises ValueError naming a weight below 0.
    """
    totals = {answer: math.fsum(ballot) for answer, ballot in _ballots(weights, answers).items()}
    return max(totals, key=totals.__getitem__) if totals else None


def reward_weights(rewards: Scores, temperature: float = 1.0) -> npt.NDArray[np.float64]:
    """Return each candidate's weight in a vote, sigmoid(reward / temperature) over the largest of them; NaN stays NaN.

    The common factor changes no vote and keeps the weights of very low rewards above 0.
    Raises ValueError if the temperature is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"the temperature of a vote must be above 0, got {temperature}")
    with np.errstate(invalid="ignore"):  # NaN
        logs = -np.logaddexp(0.0, -_floats(rewards) / temperature)
    peak = np.max(logs, initial=-np.inf, where=~np.isnan(logs))
    return np.asarray(np.exp(logs - peak if np.isfinite(peak) else logs))


def reward_vote(rewards: Scores, answers: Answers, temperature: float = 1.0) -> str | None:
    """Return the answer with the largest sum of sigmoid(reward / temperature): weighted Best-of-N.

    A reward is a logit, so the weight is the probability of being right, as a verifier's probability is summed in
    arXiv 2206.02336 and, as "best-of-N weighted", in arXiv 2408.03314. A softmax over the candidates would let one
    outlier outvote all others. A high temperature approaches the majority vote; a low one counts only the candidates
    with rewards above 0, if there are any.
    """
    return weighted_vote(reward_weights(rewards, temperature), answers)


def shrunk_means(totals: npt.NDArray[np.float64], counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return total / (count + 2 sqrt(n)) of answers with these sums and numbers of weights, [..., A]; n = counts.sum().

    That is the mean of an answer's weights together with 2 sqrt(n) further ones of 0.
    """
    voters = np.maximum(counts.sum(axis=-1, keepdims=True), 1.0)
    return np.asarray(totals / (counts + SHRINKAGE * np.sqrt(voters)))


def shrunk_vote(rewards: Scores, answers: Answers) -> str | None:
    """Return the answer whose candidates have the highest mean sigmoid(reward), shrunk by :func:`shrunk_means`.

    The highest of many rewards is the likelier an outlier the more there are; a sum of weights elects a popular mistake
    although each of its candidates is doubted. A mean does neither, but that of few candidates may be an outlier too, so
    it is shrunk towards 0: an answer of far fewer than sqrt(n) of n candidates is judged by its sum, one of far more by
    its mean. The prior of the minimax estimate of a share from n draws grows like sqrt(n), too (Hodges and Lehmann, 1950);
    the factor 2 is from benchmarks/decoding/over_optimisation.py: with 1, poorly trained heads elect rare mistakes. Where all
    answers differ, the highest reward wins. None if nobody votes.
    """
    ballots = _ballots(reward_weights(rewards), answers)
    if not ballots:
        return None
    totals = np.array([math.fsum(ballot) for ballot in ballots.values()])
    means = shrunk_means(totals, np.array([float(len(ballot)) for ballot in ballots.values()]))
    return [*ballots][int(np.argmax(means))]


def borda_votes(scores: Scores, p: float = BORDA_POWER) -> npt.NDArray[np.float64]:
    """Return each candidate's votes: rank k of N (1 = the highest score) has (N - k + 1)^p; NaN stays NaN.

    N counts the scored candidates; equal scores share the mean of their votes. Source: self-certainty, arXiv
    2502.18581. Raises ValueError if ``p`` is below 0.
    """
    if not p >= 0:
        raise ValueError(f"the power of a Borda vote must be 0 or more, got {p}")
    values = _floats(scores)
    votes = np.arange(1, np.count_nonzero(~np.isnan(values)) + 1) ** float(p)  # from the lowest rank up
    below = (values[None, :] < values[:, None]).sum(axis=1)
    equal = (values[None, :] == values[:, None]).sum(axis=1)
    return np.array([votes[b : b + e].mean() if e else math.nan for b, e in zip(below, equal, strict=True)])


def borda_vote(scores: Scores, answers: Answers, p: float = BORDA_POWER) -> str | None:
    """Return the answer with the most Borda votes, see :func:`borda_votes`; p = 0 is the majority vote."""
    return weighted_vote(borda_votes(scores, p), answers)


def fuse_rank(rewards: Scores, external: Scores) -> list[float]:
    """Fuse two rewards by rank: minus the worse of a candidate's two ranks (1 = best), so higher is better.

    Equal rewards share their mean rank. Among candidates of the same worse rank the smaller sum of ranks is better:
    the sum is subtracted too, scaled to stay below half a rank, the smallest step between two ranks. NaN in either
    gives NaN, and such candidates are not ranked. Source: ``rank`` of SWIFT, arXiv 2505.12225.
    """
    first, second, both = _paired(rewards, external)
    ranks = np.stack([_ranks(first[both]), _ranks(second[both])])
    fused = np.full(len(first), np.nan)
    fused[both] = -ranks.max(axis=0) - ranks.sum(axis=0) / (4 * len(first) + 4)
    return [float(value) for value in fused]


def fuse_scale(rewards: Scores, external: Scores) -> list[float]:
    """Fuse two rewards by scale: the mean of both after scaling each to 0 ... 1 among the candidates.

    A constant reward scales to 0.5. NaN in either gives NaN, and such candidates do not set the scale. Raises
    ValueError naming an infinite reward. Source: ``scale`` of SWIFT, arXiv 2505.12225.
    """
    first, second, both = _paired(rewards, external)
    fused = np.full(len(first), np.nan)
    fused[both] = (_min_max(first[both]) + _min_max(second[both])) / 2
    return [float(value) for value in fused]


def check_rule(rule: str, external: bool) -> None:
    """Raise ValueError for an unknown rule, and for one that needs external rewards where there are none, or the reverse."""
    if rule not in RULES:
        raise ValueError(f"unknown selection rule {rule!r}; the rules are {', '.join(RULES)}")
    if (rule in EXTERNAL_RULES) != external:
        raise ValueError(
            f"select={rule!r} and external={'a function' if external else None}: the rules {' and '.join(EXTERNAL_RULES)} "
            "fuse with an external reward, and no other does"
        )


def select(rule: str, rewards: Scores, answers: Answers, external: Scores | None = None) -> Selection:
    """Choose one candidate by the rule's name, one of ``RULES``.

    ``best`` takes the highest reward; ``rank`` and ``scale`` the highest fusion with ``external``. ``shrunk`` (by mean
    reward), ``majority``, ``vote`` (by sum) and ``borda`` elect an answer and take the highest reward among the candidates
    that gave it; if nobody votes they fall back to ``best``. ``majority`` needs no rewards: a candidate without one counts
    as the lowest. Raises ValueError for an unknown rule, lists of different lengths, a missing ``external``, or no
    candidate to choose.
    """
    if rule not in RULES:
        raise ValueError(f"unknown selection rule {rule!r}; the rules are {', '.join(RULES)}")
    values = _floats(rewards)
    _require_same_length("rewards", values, "answers", answers)
    if rule in EXTERNAL_RULES:
        if external is None:
            raise ValueError(f"the selection rule {rule!r} needs the external rewards of a second model")
        index = best(fuse_rank(values, external) if rule == "rank" else fuse_scale(values, external))
        return Selection(index, answers[index])
    winner: str | None = None
    if rule == "majority":
        winner = majority_vote(answers)
        values = np.where(np.isnan(values), -np.inf, values)
    elif rule == "vote":
        winner = reward_vote(values, answers)
    elif rule == "shrunk":
        winner = shrunk_vote(values, answers)
    elif rule == "borda":
        winner = borda_vote(values, answers)
    if winner is not None:
        values = np.where([answer == winner for answer in answers], values, np.nan)
    index = best(values)
    return Selection(index, answers[index])


def _ballots(weights: Scores, answers: Answers) -> dict[str, list[float]]:
    """Return each answer's weights, in the order of its first candidate; their fsum makes equal ballots tie in any order."""
    values = _floats(weights)
    _require_same_length("weights", values, "answers", answers)
    ballots: dict[str, list[float]] = {}
    for weight, answer in zip(values.tolist(), answers, strict=True):
        if weight < 0:
            raise ValueError(f"the weight of a vote must be 0 or more, got {weight}")
        if answer is not None and not math.isnan(weight):
            ballots.setdefault(answer, []).append(weight)
    return ballots


def _floats(values: Scores) -> npt.NDArray[np.float64]:
    return np.array(values, dtype=np.float64)  # None becomes NaN


def _require_same_length(name: str, values: npt.NDArray[np.float64], other: str, others: Answers | Scores) -> None:
    if len(values) != len(others):
        raise ValueError(f"{len(values)} {name} but {len(others)} {other}: each candidate needs one of both")


def _paired(rewards: Scores, external: Scores) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    first, second = _floats(rewards), _floats(external)
    _require_same_length("rewards", first, "external rewards", second)
    return first, second, ~(np.isnan(first) | np.isnan(second))


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    above = (values[None, :] > values[:, None]).sum(axis=1)
    equal = (values[None, :] == values[:, None]).sum(axis=1)
    return np.asarray(above + (equal + 1) / 2)


def _min_max(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    if np.isinf(values).any():
        raise ValueError(f"rewards to be scaled must be finite, got {values[np.isinf(values)][0]}")
    spread = np.ptp(values) if values.size else 0.0
    return np.asarray((values - values.min()) / spread) if spread > 0 else np.full(len(values), 0.5)
