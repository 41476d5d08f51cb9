import math

import pytest

from swift_rm.records.rollouts import Rollout
from swift_rm.selection.baselines import (
    BASELINES,
    baseline_scores,
    deepconf_bottom,
    deepconf_lowest,
    deepconf_tail,
    first,
    mean_logprob,
    random,
)


def rollout(question_id="q", tokens=4, logprob_mean=None, **extra):
    return Rollout(question_id, "p", [1], "r", list(range(tokens)), "stop", logprob_mean=logprob_mean, extra=extra)


def test_names_are_those_of_the_reports():
    assert set(BASELINES) == {
        "length",
        "mean_logprob",
        "sum_logprob",
        "min_logprob",
        "self_certainty",
        "deepconf_mean",
        "deepconf_tail",
        "deepconf_bottom",
        "deepconf_lowest",
    }


def test_log_probabilities_and_length():
    one = rollout(tokens=3, token_logprobs=[-0.5, -2.0, -0.5], self_certainty=7.5)
    assert BASELINES["length"](one) == -3
    assert BASELINES["mean_logprob"](one) == pytest.approx(-1.0)
    assert BASELINES["sum_logprob"](one) == pytest.approx(-3.0)
    assert BASELINES["min_logprob"](one) == -2.0
    assert BASELINES["self_certainty"](one) == 7.5


def test_mean_logprob_reads_the_record_where_tokens_are_missing():
    assert mean_logprob(rollout(logprob_mean=-0.3)) == -0.3
    assert mean_logprob(rollout(logprob_mean=-0.3, token_logprobs=[-0.1])) == -0.1


@pytest.mark.parametrize("name", [name for name in BASELINES if name != "length"])
@pytest.mark.parametrize("extra", [{}, {"token_logprobs": [], "token_confidence": [], "self_certainty": None}])
def test_missing_statistics_give_nan(name, extra):
    assert math.isnan(BASELINES[name](rollout(**extra)))


def test_a_null_token_gives_nan():
    one = rollout(token_logprobs=[None, -1.0], token_confidence=[None, 1.0, 2.0])
    scores = {name: score(one) for name, score in baseline_scores(2).items() if name not in ("length", "deepconf_tail")}
    assert all(math.isnan(score) for score in scores.values())
    assert baseline_scores(2)["deepconf_tail"](one) == 1.5  # the last two tokens are known
    assert math.isnan(deepconf_bottom(rollout(token_confidence=[1.0, 2.0, None]), window=1))


def test_deepconf_windows():
    confidence = [4.0, 2.0, 1.0, 3.0, 8.0]  # windows of 2: 3, 1.5, 2, 5.5
    one = rollout(token_confidence=confidence)
    scores = baseline_scores(deepconf_window=2)
    assert scores["deepconf_mean"](one) == pytest.approx(3.6)
    assert scores["deepconf_tail"](one) == pytest.approx(5.5)
    assert scores["deepconf_lowest"](one) == pytest.approx(1.5)
    assert scores["deepconf_bottom"](one) == pytest.approx(1.5)
    assert deepconf_bottom(one, window=2, share=0.5) == pytest.approx(1.75)
    assert deepconf_lowest(one, window=1) == pytest.approx(1.0)
    assert deepconf_lowest(one, window=5) == pytest.approx(3.6)


def test_deepconf_bottom_is_the_mean_of_a_tenth_of_the_windows():
    one = rollout(token_confidence=[float(value) for value in range(29, 0, -1)])
    assert deepconf_bottom(one, window=1) == pytest.approx(1.5)  # 2 of 29 windows: 1 and 2


def test_deepconf_scores_agree_on_responses_within_one_window():
    one = rollout(token_confidence=[4.0, 2.0, 1.0, 3.0, 8.0])
    names = [name for name in BASELINES if name.startswith("deepconf")]
    assert len(names) == 4
    assert [BASELINES[name](one) for name in names] == pytest.approx([3.6] * 4)


def test_deepconf_refuses_empty_windows():
    one = rollout(token_confidence=[1.0])
    with pytest.raises(ValueError, match="window must be at least 1 token, got 0"):
        baseline_scores(0)
    with pytest.raises(ValueError, match="window must be at least 1 token, got -2"):
        deepconf_lowest(one, window=-2)
    with pytest.raises(ValueError, match="tail must be at least 1 token, got 0"):
        deepconf_tail(one, tail=0)


def test_first_prefers_the_first():
    assert first([rollout(), rollout(), rollout()]) == [0.0, -1.0, -2.0]


def test_random_depends_on_seed_question_and_position_only():
    a, b = rollout("a"), rollout("b")
    scores = random([a, a, b], seed=1)
    assert scores == random([rollout("a", tokens=9), rollout("a"), rollout("b")], seed=1)
    assert len({*scores, *random([a, a, b], seed=2), random([b], seed=1)[0]}) == 7
    many = random([a] * 2000)
    assert all(0 <= score < 1 for score in many)
    assert sum(many) / 2000 == pytest.approx(0.5, abs=0.03)
