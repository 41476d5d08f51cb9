import math

import pytest

from swift_rm.decoding.pruning import Confidence, Halving, check_guide, get_prune
from tests.reward_models import make_rm

NAN = math.nan


def test_halving_checks_at_growing_lengths():
    assert [tokens for tokens in range(100) if Halving().checks(tokens)] == [16, 32, 64]
    assert [tokens for tokens in range(20) if Halving(min_tokens=1).checks(tokens)] == [1, 2, 4, 8, 16]
    assert [tokens for tokens in range(30) if Halving(min_tokens=3, growth=3).checks(tokens)] == [3, 9, 27]
    assert [tokens for tokens in range(20) if Halving(min_tokens=10, growth=1.5).checks(tokens)] == [10, 15]


@pytest.mark.parametrize(
    ("tokens", "rewards", "finished", "pruned", "dropped"),
    [
        (16, [1.0, 4.0, 2.0, 3.0], [], 0, [0, 2]),
        (32, [4.0, 3.0], [], 2, [1]),
        (16, [1.0, 2.0, 3.0], [], 0, [0]),  # of three, two stand
        (16, [1.0, 2.0], [9.0, 8.0], 0, [0, 1]),  # those that finished count among the two
        (16, [5.0, 2.0], [1.0, 0.0], 0, []),  # and are not dropped
        (16, [5.0, 2.0], [3.0, 0.0], 0, [1]),
        (16, [7.0, 7.0, 7.0, 7.0], [], 0, [2, 3]),  # of equals the last go
        (16, [NAN, 1.0], [], 0, [0]),
        (16, [NAN, NAN], [], 0, [1]),
        (16, [1.0, 2.0], [NAN, NAN], 0, []),
        (16, [-math.inf, math.inf, 0.0, 1.0], [], 0, [0, 2]),
        (16, [3.0], [], 0, []),
        (1024, [3.0, 4.0], [], 0, [0]),  # one is always left
        (16, [], [1.0], 3, []),
    ],
)
def test_halving_keeps_the_best_share(tokens, rewards, finished, pruned, dropped):
    hopeless = Halving().hopeless(tokens, rewards, finished, pruned)
    assert [i for i, drop in enumerate(hopeless) if drop] == dropped
    assert len(hopeless) == len(rewards)


def test_halving_leaves_as_many_as_told():
    rewards = [float(i) for i in range(16)]
    for least in (1, 3, 16):
        assert Halving(least=least).hopeless(256, rewards, [], 0).count(False) == least
    assert Halving(keep=0.25).hopeless(16, rewards, [], 0).count(False) == 4
    assert Halving(keep=0.1).hopeless(16, rewards[:10], [], 0).count(False) == 1, "a tenth of ten is one, not two"


def test_halving_ends_with_one_of_n():
    standing, pruned = [float(i) for i in range(13)], 0
    for tokens in range(1, 257):
        if Halving().checks(tokens):
            drop = Halving().hopeless(tokens, standing, [], pruned)
            pruned += sum(drop)
            standing = [reward for reward, gone in zip(standing, drop, strict=True) if not gone]
    assert standing == [12.0]


def test_confidence_checks_every_few_tokens():
    assert [tokens for tokens in range(30) if Confidence(every=5).checks(tokens)] == [16, 21, 26]
    assert [tokens for tokens in range(5) if Confidence(min_tokens=1, every=1).checks(tokens)] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("rewards", "finished", "dropped"),
    [
        ([0.0, 1.9, 2.0, 4.0], [], [0, 1]),  # exactly the margin is not below it
        ([0.0, 1.0], [5.0], [0, 1]),
        ([0.0, 1.0], [NAN], []),
        ([NAN, 1.0], [], [0]),
        ([NAN, NAN], [], []),
        ([NAN], [1.0], [0]),
        ([3.0], [], []),
        ([], [1.0], []),
    ],
)
def test_confidence_drops_what_is_a_margin_below_the_best(rewards, finished, dropped):
    hopeless = Confidence(margin=2.0).hopeless(16, rewards, finished, 0)
    assert [i for i, drop in enumerate(hopeless) if drop] == dropped


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Halving(min_tokens=0), "halving needs min_tokens >= 1.*got 0"),
        (lambda: Halving(growth=1.0), "growth > 1"),
        (lambda: Halving(keep=1.0), "0 < keep < 1"),
        (lambda: Halving(least=0), "least >= 1"),
        (lambda: Confidence(margin=0.0), "margin > 0"),
        (lambda: Confidence(every=0), "every >= 1"),
        (
            lambda: get_prune("chopping", make_rm()),
            "prune must be one of .'confidence', 'halving'., or such a rule, got 'chopping'",
        ),
        (
            lambda: get_prune(Halving(guide=make_rm(layers=(1,))), make_rm()),
            r"its layers is \(1,\), the reward model's \(0, 2, 3\)",
        ),
        (lambda: check_guide(make_rm(), make_rm(position="token")), "its position is 'token'"),
    ],
)
def test_rules_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_rules_by_name_and_as_they_are():
    rm, rule = make_rm(), Halving(guide=make_rm())
    assert get_prune("halving", rm) == Halving()
    assert get_prune("confidence", rm) == Confidence()
    assert get_prune(rule, rm) is rule
    assert get_prune(None, rm) is None
