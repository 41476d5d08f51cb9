import itertools
import math
import random

import pytest

from swift_rm.hipo.rollouts.rollout_selection import informative, keep_informative


def variance(values):
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / len(values)


def test_the_highest_and_the_lowest_are_kept():
    assert informative([0.5, 0.9, 0.1, 0.6, 0.4, 0.2], 2) == [1, 2]
    assert informative([0.5, 0.9, 0.1, 0.6, 0.4, 0.2], 4) == [1, 2, 3, 5]


@pytest.mark.parametrize("seed", range(20))
def test_no_subset_has_a_larger_variance(seed):
    generator = random.Random(seed)
    rewards = [generator.choice([generator.random(), 0.0, 1.0]) for _ in range(9)]
    for keep in range(1, 10):
        best = max(variance(subset) for subset in itertools.combinations(rewards, keep))
        assert variance([rewards[i] for i in informative(rewards, keep)]) == pytest.approx(best)


def test_ties_go_to_the_earlier():
    assert informative([0.3] * 5, 3) == [0, 1, 2]
    assert informative([1.0, 0.0, 0.0, 1.0], 2) == [0, 1]
    assert informative([0.0, 0.0, 1.0, 1.0], 3) == [0, 1, 2]  # and not 0, 2, 3, which spread as much
    assert informative([0.1 + 0.2, 0.3, 0.0], 2) == [0, 2]


def test_rewards_that_are_no_numbers_are_taken_last():
    assert informative([math.nan, 0.5, math.inf, 0.6], 2) == [1, 3]
    assert informative([math.nan, 0.5, math.inf, 0.6], 3) == [0, 1, 3]
    assert informative([math.nan, math.nan], 1) == [0]


@pytest.mark.parametrize("keep", [0, 3])
def test_a_size_that_cannot_be_had_is_refused(keep):
    with pytest.raises(ValueError, match=f"from 1 to the 2 rewards there are, got {keep}"):
        informative([0.1, 0.2], keep)


def test_a_mode_is_not_lost():
    rewards, modes = [0.9, 0.1, 0.5, 0.45], ["on", "on", "off", "off"]
    assert informative(rewards, 2) == [0, 1]
    assert keep_informative(rewards, 2, modes) == [0, 3]  # of the exchanges the one that keeps most variance
    assert keep_informative(rewards, 2, ["on", "on", None, "on"]) == [0, 1]
    assert keep_informative(rewards, 1, modes) == [informative(rewards, 1)[0]]


def test_a_lone_mode_is_not_given_for_the_other():
    rewards, modes = [1.0, 0.0, 0.9, 0.5], ["on", None, "on", "off"]
    kept = keep_informative(rewards, 3, modes)
    assert {"on", "off"} <= {modes[i] for i in kept}


def test_whole_ones_come_first():
    rewards, whole = [0.9, 0.1, 0.5, 0.4], [False, True, True, False]
    assert keep_informative(rewards, 2, None, whole) == [1, 2]
    assert keep_informative(rewards, 3, None, whole) == [0, 1, 2]  # only as many others as are needed
    assert keep_informative(rewards, 2, ["off", "on", "on", "off"], whole) == [1, 2]  # not for a mode that only they have
