import math

import numpy as np
import pytest

from swift_rm.evaluation.intervals import Interval, Resamples, paired_difference


def test_row_zero_is_the_data_and_every_row_draws_as_many_questions():
    resamples = Resamples(7, bootstrap=50, seed=3)
    assert resamples.counts.shape == (51, 7)
    assert resamples.counts[0].tolist() == [1.0] * 7
    assert set(resamples.counts.sum(axis=1)) == {7.0}
    assert len({tuple(row) for row in resamples.counts}) > 40
    np.testing.assert_array_equal(resamples.counts, Resamples(7, bootstrap=50, seed=3).counts)
    assert (resamples.counts != Resamples(7, bootstrap=50, seed=4).counts).any()


def test_ratio_weights_questions_by_their_count():
    resamples = Resamples(3, bootstrap=20)
    numerators, denominators = np.array([1.0, 5.0, 2.0]), np.array([2.0, 0.0, 4.0])
    expected = [c @ numerators / (c @ denominators) if c @ denominators else math.nan for c in resamples.counts]
    np.testing.assert_allclose(resamples.ratio(numerators, denominators), expected)
    both = resamples.ratio(np.stack([numerators, 2 * numerators], axis=1))
    np.testing.assert_allclose(both[:, 1], 2 * both[:, 0])
    assert both[0].tolist() == pytest.approx([8 / 3, 16 / 3])


def test_interval_of_a_mean_is_that_of_the_normal_approximation():
    values = np.random.default_rng(0).normal(size=400)
    resamples = Resamples(400, bootstrap=4000)
    interval = resamples.interval(resamples.ratio(values))
    half = 1.96 * values.std() / 20
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    narrow = Resamples(400, bootstrap=4000, confidence=0.5)
    narrow_interval = narrow.interval(narrow.ratio(values))
    assert narrow_interval.high - narrow_interval.low == pytest.approx(2 * half * 0.6745 / 1.96, rel=0.1)


def test_intervals_take_percentiles_of_the_defined_resamples():
    resamples = Resamples(1, bootstrap=5, confidence=0.5)
    columns = np.array([[9, 9], [1, math.nan], [2, math.nan], [3, math.nan], [4, math.nan], [math.nan, math.nan]])
    one, two = resamples.intervals(columns)
    assert one == Interval(9.0, 1.75, 3.25)
    assert two.value == 9.0
    assert math.isnan(two.low)
    assert two.to_dict() == {"value": 9.0, "low": None, "high": None}


def test_paired_difference_cancels_what_both_share():
    rng = np.random.default_rng(1)
    shared = rng.random(200)
    gain = np.where(rng.random(200) < 0.5, 0.2, 0.1)
    interval = paired_difference(shared + gain, shared, bootstrap=500)
    assert interval.value == pytest.approx(gain.mean())
    assert 0.13 < interval.low < interval.value < interval.high < 0.17
    assert paired_difference([1.0, 1.0], [0.25, 0.25]) == Interval(0.75, 0.75, 0.75)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="at least 1 question, got 0"):
        paired_difference([], [])
    with pytest.raises(ValueError, match="got 2 and 3"):
        paired_difference([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="at least 1 bootstrap resample, got 0"):
        Resamples(3, bootstrap=0)
    for confidence in (0.0, 1.0, 95.0):
        with pytest.raises(ValueError, match=f"between 0 and 1, got {confidence}"):
            Resamples(3, confidence=confidence)


def test_a_figure_that_is_nowhere_defined_has_no_interval():
    found = Resamples(3, bootstrap=5).interval(np.full(6, np.nan))
    assert found.to_dict() == {"value": None, "low": None, "high": None}
