import numpy as np
import pytest

from swift_rm.reward.calibration import METHODS, Calibration, fit_calibration


def drawn(slope, offset, n=20000):
    generator = np.random.default_rng(0)
    rewards = generator.normal(size=n) * 2
    return rewards, (generator.random(n) < 1 / (1 + np.exp(-(slope * rewards + offset)))).astype(int)


def test_platt_finds_the_curve_the_labels_were_drawn_from():
    curve = fit_calibration(*drawn(0.7, -0.4))
    assert curve.slope == pytest.approx(0.7, abs=0.04)
    assert curve.offset == pytest.approx(-0.4, abs=0.05)


def test_temperature_has_no_offset():
    curve = fit_calibration(*drawn(0.5, 0.0), method="temperature")
    assert (curve.slope, curve.offset) == (pytest.approx(0.5, abs=0.03), 0.0)


def test_isotonic_is_monotone_and_close():
    rewards, labels = drawn(0.7, -0.4)
    curve = fit_calibration(rewards, labels, method="isotonic")
    grid = np.linspace(-3, 3, 50)
    assert (np.diff(curve(grid)) >= 0).all()
    assert np.abs(curve(grid) - 1 / (1 + np.exp(-(0.7 * grid - 0.4)))).max() < 0.1


@pytest.mark.parametrize("method", METHODS)
def test_a_curve_survives_its_dictionary(method):
    curve = fit_calibration(*drawn(0.7, -0.4, n=300), method=method)
    assert Calibration.from_dict(curve.to_dict()) == curve


def test_rewards_that_rank_the_wrong_way_round_get_the_base_rate():
    curve = fit_calibration([3.0, 2.0, -2.0, -3.0], [0, 0, 1, 0])
    assert curve([5.0, -5.0]).tolist() == pytest.approx([0.25, 0.25])


def test_nan_stays_nan_and_extremes_stay_finite():
    assert np.isnan(Calibration("platt")([np.nan])).all()
    assert np.isnan(fit_calibration(*drawn(1, 0, n=100), method="isotonic")([np.nan])).all()
    assert Calibration("platt", slope=1e9)([1e9, -1e9]).tolist() == pytest.approx([1.0, 0.0])


def test_equal_labels_and_unknown_methods_are_refused():
    with pytest.raises(ValueError, match=r"got 2 labels all equal to \{1\}"):
        fit_calibration([0.1, 0.2], [1, 1])
    with pytest.raises(ValueError, match="got 'histogram'"):
        fit_calibration([0.1, 0.2], [1, 0], method="histogram")
