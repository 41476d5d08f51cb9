"""How well a plain linear probe of each layer ranks the responses of questions it was not trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm

from swift_rm.evaluation.auroc import within_question_auroc
from swift_rm.evaluation.intervals import Interval, Resamples
from swift_rm.evaluation.response_summaries import READS, Summaries

Floats = npt.NDArray[np.float64]
Fold = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]  # the responses to train on, and those to predict

FOLDS = 5
STRENGTH = 0.1  # scikit-learn's C: small, as a layer has about as many features as there are responses


@dataclass(frozen=True)
class LayerAuroc:
    """Within-question AUROC of one layer's probes, of the response's mean state and of its last, with intervals."""

    layer: int
    mean: Interval
    last: Interval


def layer_auroc(
    summaries: Summaries, *, folds: int = FOLDS, bootstrap: int = 2000, seed: int = 0, progress: bool = False
) -> list[LayerAuroc]:
    """Return each layer's within-question AUROC, cross-validated over questions, with bootstrap intervals over questions.

    The probe is a logistic regression on standardised states. Every response is scored by the probe that was trained
    without its question. The intervals do not hold the training's own variation. Raises ValueError if there are no right
    and wrong responses, or fewer than five questions (or than ``folds``) that have both.
    """
    from sklearn.linear_model import LogisticRegression

    split = question_folds(summaries, folds, seed)
    resamples = Resamples(len(mixed_question_numbers(summaries)), bootstrap=bootstrap, seed=seed)
    found = []
    for column, layer in enumerate(tqdm(summaries.layers, desc="probing", unit="layer", disable=not progress, delay=1)):
        intervals = []
        for read in READS:
            scores = cross_validated(
                summaries, summaries.states(read, column), split, lambda: LogisticRegression(C=STRENGTH, max_iter=1000)
            )
            intervals.append(resamples.interval(resamples.ratio(question_aurocs(scores, summaries.labels, summaries.question))))
        found.append(LayerAuroc(layer, *intervals))
    return found


def mixed_question_numbers(summaries: Summaries) -> npt.NDArray[np.int64]:
    """Return the numbers of the questions that have both right and wrong responses, ascending."""
    right, wrong = (set(summaries.question[summaries.labels == label].tolist()) for label in (1, 0))
    return np.array(sorted(right & wrong), dtype=np.int64)


def question_folds(summaries: Summaries, folds: int, seed: int) -> list[Fold]:
    """Share the questions out to folds, whole, those with right and wrong responses alike; raise ValueError if too few."""
    from sklearn.model_selection import StratifiedGroupKFold

    from swift_rm.records.rollouts import check_trainable

    if folds < 2:
        raise ValueError(f"cross-validation needs at least 2 folds, got {folds}")
    check_trainable(list(zip(map(str, summaries.question.tolist()), summaries.labels.tolist(), strict=True)))
    mixed = mixed_question_numbers(summaries)
    if len(mixed) < folds:
        raise ValueError(f"{folds} folds need as many questions with both right and wrong responses, got {len(mixed)}")
    kind = np.isin(summaries.question, mixed)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros((len(kind), 1)), kind, summaries.question))


def cross_validated(summaries: Summaries, states: npt.NDArray[np.float32], split: list[Fold], make: Callable[[], Any]) -> Floats:
    """Return the score [B] of each response by a classifier that has not seen its question.

    ``make`` builds the classifier, which gets standardised states. Each fold's scores are standardised by those of its
    training responses, so that responses of different questions may be compared too.
    """
    from sklearn.preprocessing import StandardScaler

    scores = np.empty(len(states))
    for train, test in split:
        scaler = StandardScaler().fit(states[train])
        seen = scaler.transform(states[train])
        classifier = make().fit(seen, summaries.labels[train])
        known = classifier.decision_function(seen)
        scores[test] = (classifier.decision_function(scaler.transform(states[test])) - known.mean()) / (known.std() or 1.0)
    return scores


def question_aurocs(scores: Floats, labels: npt.NDArray[np.int64], question: npt.NDArray[np.int64]) -> Floats:
    """Return the AUROC of each question that has both right and wrong responses; all arguments are [B]."""
    order = np.argsort(question, kind="stable")
    ends = np.flatnonzero(np.diff(question[order])) + 1
    by_question = within_question_auroc(np.split(scores[order], ends), np.split(labels[order], ends))
    return by_question[~np.isnan(by_question)]
