import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from swift_rm.evaluation.auroc import pooled_auroc, within_question_auroc


def scored_questions(ties):
    rng = np.random.default_rng(7)
    labels = (rng.random((30, 9)) < rng.random((30, 1))).astype(float)
    labels[0], labels[1] = 1.0, 0.0
    scores = labels + rng.normal(size=labels.shape) * 1.5
    return (np.round(scores) if ties else scores), labels


@pytest.mark.parametrize("ties", [False, True])
def test_within_question_equals_sklearn(ties):
    scores, labels = scored_questions(ties)
    result = within_question_auroc(scores, labels)
    for auroc, score, label in zip(result, scores, labels, strict=True):
        if len(set(label)) == 1:
            assert math.isnan(auroc)
        else:
            assert auroc == pytest.approx(roc_auc_score(label, score))
    assert np.isnan(result[:2]).all()


@pytest.mark.parametrize("ties", [False, True])
def test_pooled_equals_sklearn_for_every_row_of_counts(ties):
    scores, labels = scored_questions(ties)
    counts = np.random.default_rng(1).integers(0, 3, (150, 30)).astype(float)
    result = pooled_auroc(scores, labels, counts)
    for row in (0, 63, 64, 149):
        repeat = counts[row].astype(int)
        expected = roc_auc_score(np.repeat(labels, repeat, axis=0).ravel(), np.repeat(scores, repeat, axis=0).ravel())
        assert result[row] == pytest.approx(expected)
    assert pooled_auroc(scores, labels)[0] == pytest.approx(roc_auc_score(labels.ravel(), scores.ravel()))


def test_nan_ranks_below_every_score():
    scores, labels = np.array([[math.nan, 0.0, math.nan, -5.0]]), np.array([[1.0, 1.0, 0.0, 0.0]])
    assert within_question_auroc(scores, labels)[0] == pytest.approx((0.5 + 0 + 1 + 1) / 4)
    assert pooled_auroc(scores, labels)[0] == pytest.approx((0.5 + 0 + 1 + 1) / 4)


def test_pooled_is_undefined_without_both_labels():
    result = pooled_auroc(np.array([[1.0], [2.0]]), np.array([[1.0], [0.0]]), np.array([[1.0, 1.0], [2.0, 0.0]]))
    assert result[0] == 0.0
    assert math.isnan(result[1])
