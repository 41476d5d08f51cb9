"""AUROC of a score: the chance that a right response is scored above a wrong one, ties counting one half.

Within a question is what reranking needs; pooled over questions it also rewards knowing which questions are easy, and
looks good through that alone. NaN ranks below every score, and equal to other NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

ROWS_AT_ONCE = 64  # resamples worked on together: bounds the memory to that many times the responses


def within_question_auroc(scores: Sequence[Floats] | Floats, labels: Sequence[Floats] | Floats) -> Floats:
    """Return each question's AUROC, [Q], of its ``scores`` and ``labels``; NaN where all labels are equal.

    Both are [Q, N], or one array a question where questions have different numbers of responses.
    """
    result = np.full(len(scores), np.nan)
    for question, (score, label) in enumerate(zip(scores, labels, strict=True)):
        ranked = _ranked(score)
        right, wrong = ranked[label == 1][:, None], ranked[label == 0][None, :]
        if right.size and wrong.size:
            result[question] = ((right > wrong).mean() + (right >= wrong).mean()) / 2
    return result


def pooled_auroc(scores: Floats, labels: Floats, counts: Floats | None = None) -> Floats:
    """Return the AUROC over all questions' responses together, for each row of question ``counts`` [R, Q], as [R].

    ``scores`` and ``labels`` are [Q, N]; without ``counts`` every question counts once. NaN where all labels are equal.
    """
    counts = np.ones((1, len(scores))) if counts is None else counts
    flat, right = _ranked(scores).ravel(), labels.ravel() == 1
    question = np.repeat(np.arange(len(scores)), scores.shape[1])
    order = np.argsort(flat[~right], kind="stable")
    wrong_question, wrong_scores = question[~right][order], flat[~right][order]
    below = np.searchsorted(wrong_scores, flat[right], side="left")
    not_above = np.searchsorted(wrong_scores, flat[right], side="right")
    result = np.empty(len(counts))
    for start in range(0, len(counts), ROWS_AT_ONCE):
        rows = counts[start : start + ROWS_AT_ONCE]
        wrong = np.zeros((len(rows), len(wrong_scores) + 1))  # weight of the wrong responses up to each place
        np.cumsum(rows[:, wrong_question], axis=1, out=wrong[:, 1:])
        weights = rows[:, question[right]]
        wins = (weights * (wrong[:, below] + wrong[:, not_above])).sum(axis=1) / 2
        with np.errstate(invalid="ignore"):
            result[start : start + ROWS_AT_ONCE] = wins / (weights.sum(axis=1) * wrong[:, -1])
    return result


def _ranked(scores: Floats) -> Floats:
    return np.where(np.isnan(scores), -np.inf, scores)
