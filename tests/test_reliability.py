import math

import numpy as np
import pytest

from swift_rm.intervals import Resamples
from swift_rm.reliability import brier, expected_calibration_error


def test_brier_and_calibration_error_by_hand():
    probabilities, labels = np.array([[0.9, 0.9], [0.1, math.nan]]), np.array([[1.0, 0.0], [0.0, 1.0]])
    resamples = Resamples(2, bootstrap=200)
    score = brier(probabilities, labels, resamples)
    assert score.value == pytest.approx((0.01 + 0.81 + 0.01) / 3)
    assert (score.low, score.high) == pytest.approx((0.01, 0.41))  # of the second question alone, of the first alone
    # a bin with mean 0.9 and half of two right, a bin with 0.1 and none of one right
    error = expected_calibration_error(probabilities, labels, resamples)
    assert error.value == pytest.approx((2 * 0.4 + 1 * 0.1) / 3)
    assert (error.low, error.high) == pytest.approx((0.1, 0.4))


def test_bins_hold_their_lower_edge_and_the_last_holds_one():
    resamples = Resamples(1, bootstrap=1)
    # 0.5 is in the upper of two bins with 1.0: gaps -0.5 and +1 cancel to 0.5; in separate bins they add up to 1.5
    probabilities, labels = np.array([[0.5, 1.0]]), np.array([[1.0, 0.0]])
    assert expected_calibration_error(probabilities, labels, resamples, bins=2).value == pytest.approx(0.5 / 2)
    assert expected_calibration_error(probabilities, labels, resamples, bins=3).value == pytest.approx(1.5 / 2)
    assert expected_calibration_error(np.array([[0.0, 0.49]]), labels, resamples, bins=2).value == pytest.approx(0.51 / 2)


def test_many_calibrated_probabilities_have_a_small_error_and_shifted_ones_the_shift():
    rng = np.random.default_rng(0)
    probabilities = rng.random((2000, 4)) * 0.7
    labels = (rng.random((2000, 4)) < probabilities).astype(float)
    resamples = Resamples(2000, bootstrap=20)
    assert expected_calibration_error(probabilities, labels, resamples).value < 0.03
    assert expected_calibration_error(probabilities + 0.3, labels, resamples).value == pytest.approx(0.3, abs=0.02)
