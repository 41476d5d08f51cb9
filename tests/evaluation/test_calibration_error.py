import math

import numpy as np
import pytest

from swift_rm.evaluation.calibration_error import brier, calibration
from swift_rm.evaluation.intervals import Resamples


def test_brier_and_calibration_error_by_hand():
    probabilities, labels = np.array([[0.9, 0.9], [0.1, math.nan]]), np.array([[1.0, 0.0], [0.0, 1.0]])
    resamples = Resamples(2, bootstrap=200)
    score = brier(probabilities, labels, resamples)
    assert score.value == pytest.approx((0.01 + 0.81 + 0.01) / 3)
    assert (score.low, score.high) == pytest.approx((0.01, 0.41))  # of the second question alone, of the first alone
    # a bin with mean 0.9 and half of two right, a bin with 0.1 and none of one right
    error = calibration(probabilities, labels, resamples).error
    assert error.value == pytest.approx((2 * 0.4 + 1 * 0.1) / 3)
    assert (error.low, error.high) == pytest.approx((0.1, 0.4))


def test_bins_hold_their_lower_edge_and_the_last_holds_one():
    resamples = Resamples(1, bootstrap=1)
    # 0.5 is in the upper of two bins with 1.0: gaps -0.5 and +1 cancel to 0.5; in separate bins they add up to 1.5
    probabilities, labels = np.array([[0.5, 1.0]]), np.array([[1.0, 0.0]])
    assert calibration(probabilities, labels, resamples, bins=2).error.value == pytest.approx(0.5 / 2)
    assert calibration(probabilities, labels, resamples, bins=3).error.value == pytest.approx(1.5 / 2)
    assert calibration(np.array([[0.0, 0.49]]), labels, resamples, bins=2).error.value == pytest.approx(0.51 / 2)


def test_many_calibrated_probabilities_have_a_small_error_and_shifted_ones_the_shift():
    rng = np.random.default_rng(0)
    probabilities = rng.random((2000, 4)) * 0.7
    labels = (rng.random((2000, 4)) < probabilities).astype(float)
    resamples = Resamples(2000, bootstrap=20)
    assert calibration(probabilities, labels, resamples).error.value < 0.03
    assert calibration(probabilities + 0.3, labels, resamples).error.value == pytest.approx(0.3, abs=0.02)


def test_bins_have_their_share_of_right_responses_and_its_interval():
    # question 0: two in the upper half, one right; question 1: one in the upper half, right; none at 0.25 ... 0.5
    probabilities, labels = np.array([[0.6, 0.7], [0.1, 1.0], [math.nan, 0.2]]), np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    found = calibration(probabilities, labels, Resamples(3, bootstrap=400), bins=4).bins
    assert [(one.low, one.high, one.responses) for one in found] == [(0.0, 0.25, 2), (0.5, 0.75, 2), (0.75, 1.0, 1)]
    assert [one.probability for one in found] == pytest.approx([0.15, 0.65, 1.0])
    assert [one.right.value for one in found] == pytest.approx([0.5, 0.5, 1.0])
    assert (found[0].right.low, found[0].right.high) == (0.0, 1.0)  # of question 1 alone, of question 2 alone
    assert (found[1].right.low, found[1].right.high) == (0.5, 0.5)  # both are of question 0
    assert found[0].to_dict() == {"low": 0.0, "high": 0.25, "responses": 2, "probability": pytest.approx(0.15),
                                  "right": {"value": 0.5, "low": 0.0, "high": 1.0}}  # fmt: skip


def test_the_error_is_made_of_the_bins():
    rng = np.random.default_rng(1)
    probabilities, labels = rng.random((50, 6)), rng.integers(0, 2, (50, 6)).astype(float)
    found = calibration(probabilities, labels, Resamples(50, bootstrap=5))
    assert found.error.value == pytest.approx(sum(b.responses * abs(b.probability - b.right.value) for b in found.bins) / 300)
