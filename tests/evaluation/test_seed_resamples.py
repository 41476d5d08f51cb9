import numpy as np
import pytest

from swift_rm.evaluation.intervals import Resamples, SeedResamples, pooled


def test_seed_intervals_are_the_loop_over_resamples():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 7))
    values[:, 2] = np.nan
    one = SeedResamples(3, 7, bootstrap=20)
    for row, figure in enumerate(one.figures(values)):
        seeds = np.repeat(np.arange(3), one.seeds[row].astype(int))
        questions = np.repeat(np.arange(7), one.questions[row].astype(int))
        assert figure == pytest.approx(np.nanmean([[values[s, q] for q in questions] for s in seeds]))
    assert one.figures(values)[0] == pytest.approx(np.nanmean(values))


def test_seed_intervals_cover_seeds_and_questions():
    rng = np.random.default_rng(1)
    only_questions = np.tile(rng.normal(size=(1, 40)), (5, 1))
    only_seeds = np.tile(rng.normal(size=(5, 1)), (1, 40))
    one, plain = SeedResamples(5, 40, bootstrap=20_000), Resamples(40, bootstrap=20_000)
    expected = plain.interval(plain.ratio(only_questions[0]))
    found = one.interval(one.figures(only_questions))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    variance = one.figures(only_seeds)[1:].var()
    assert variance == pytest.approx(only_seeds[:, 0].var(ddof=1) / 5, rel=0.05), "few seeds do not make it narrower"
    both, width = one.figures(only_questions + only_seeds), found.high - found.low
    assert one.interval(both).high - one.interval(both).low > width


def test_settings_share_the_questions_but_not_the_seeds():
    first, second, other = SeedResamples(5, 9), SeedResamples(5, 9, seed_seed=1), SeedResamples(5, 9, question_seed=1)
    assert (first.questions == second.questions).all() and not (first.seeds == second.seeds).all()
    assert not (first.questions == other.questions).all()
    values = np.random.default_rng(2).normal(size=(5, 9))
    together = pooled([first, second], [values, values + 2])
    assert together.value == pytest.approx(values.mean() + 1)
    assert together.low < together.value < together.high
    with pytest.raises(ValueError, match="at least 1, got 0"):
        SeedResamples(0, 9)
