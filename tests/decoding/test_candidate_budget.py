import itertools
import random

import pytest

from swift_rm.decoding.candidate_budget import PRIOR, CandidatePlan, QuestionProgress, expected_gain


def gain_by_enumeration(own, others, more):
    """Return the definition of `expected_gain`: every way to draw ``more`` candidates, weighed."""
    weights = [1.0] * len(own) + [(PRIOR if own else 1.0) / len(others) for _ in others]
    values, total, best = [*own, *others], sum(weights), max(own, default=0.0)
    gain = 0.0
    for drawn in itertools.product(range(len(values)), repeat=more):
        chance = 1.0
        for i in drawn:
            chance *= weights[i] / total
        gain += chance * max(0.0, max(values[i] for i in drawn) - best)
    return gain


@pytest.mark.parametrize("more", [1, 2, 3])
@pytest.mark.parametrize(
    ("own", "others"),
    [
        ([0.2, 0.5], [0.9, 0.1, 0.6]),
        ([0.5], []),
        ([], [0.3, 0.8]),
        ([0.9], [0.1, 0.2]),
        ([0.4, 0.4, 0.4], [0.4, 0.7, 0.7]),
        ([0.0], [1.0]),
    ],
)
def test_the_expected_gain_is_that_of_the_best_of_independent_guesses(own, others, more):
    assert expected_gain(own, others, more) == pytest.approx(gain_by_enumeration(own, others, more), abs=1e-12)


def test_the_expected_gain_grows_with_chances_and_shrinks_with_what_is_there():
    others = [0.1, 0.5, 0.9]
    assert expected_gain([], [], 1) == 1.0
    assert expected_gain([0.9], others, 8) == 0.0
    gains = [expected_gain([0.3], others, more) for more in range(1, 9)]
    assert gains == sorted(gains)
    assert 0 < gains[0] < gains[-1] < 0.9 - 0.3
    bests = [expected_gain([best], others, 4) for best in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)]
    assert bests == sorted(bests, reverse=True)
    sure = [expected_gain([0.3] * size, others, 4) for size in (1, 4, 16, 64)]
    assert sure == sorted(sure, reverse=True), "what a question's own candidates say should come to weigh more"


def test_without_a_reason_to_wait_all_come_at_once():
    plan = CandidatePlan(n=5, wave=2, min_gain=0.5)
    assert plan.next_wave([QuestionProgress([], 0, 0), QuestionProgress([], 0, 0)]) == ([5, 5], [None, None])
    assert plan.next_wave([QuestionProgress([0.1] * 5, 5, 50), QuestionProgress([], 5, 50)]) == ([0, 0], ["all", "all"])


def test_waves_end_at_a_probability_at_n_or_where_little_is_to_be_gained():
    plan = CandidatePlan(n=5, wave=2, stop_at=0.9, min_gain=0.01)
    assert plan.next_wave([QuestionProgress([], 0, 0)] * 2) == ([2, 2], [None, None])
    sampled = [
        QuestionProgress([0.2, 0.9], 2, 20),  # there
        QuestionProgress([0.2, 0.8], 2, 20),  # not yet
        QuestionProgress([0.2, 0.5, 0.1, 0.1], 4, 40),  # one candidate left
        QuestionProgress([0.5], 5, 50),  # none left, the others are pruned
    ]
    counts, ended = plan.next_wave(sampled)
    assert (counts, ended) == ([0, 2, 1, 0], ["probability", None, None, "all"])
    counts, ended = plan.next_wave([QuestionProgress([0.5] * 4, 4, 40)] * 9 + [QuestionProgress([0.505] * 4, 4, 40)])
    assert (counts, ended) == ([0] * 10, ["gain"] * 10)
    assert plan.next_wave([QuestionProgress([0.1, 0.12], 2, 20)]) == ([2], [None]), (
        "a lone question's first wave tells little of the next"
    )
    assert plan.next_wave([QuestionProgress([], 2, 20)]) == ([2], [None]), "candidates without a reward tell nothing"


def test_a_probability_of_one_is_reached_only_by_certainty():
    plan = CandidatePlan(n=4, wave=1, stop_at=1.0)
    assert plan.next_wave([QuestionProgress([0.9999999], 1, 9), QuestionProgress([1.0], 1, 9)])[0] == [1, 0]
    assert plan.next_wave([QuestionProgress([0.3], 1, 9)])[0] == [1], "with min_gain=0 no gain is too small"


def test_the_budget_goes_where_a_token_helps_most():
    plan = CandidatePlan(n=16, wave=2, budget=200)
    little, much = QuestionProgress([0.95, 0.9], 2, 20), QuestionProgress([0.1, 0.2], 2, 20)
    assert plan.next_wave([little, much]) == ([2, 2], [None, None])
    tight = CandidatePlan(n=16, wave=2, budget=60)  # 20 tokens left: one wave of two
    assert tight.next_wave([little, much]) == ([0, 2], ["budget", None])
    long = QuestionProgress([0.1, 0.2], 2, 100)
    assert CandidatePlan(n=16, wave=2, budget=130).next_wave([long, much]) == ([0, 1], ["budget", None]), (
        "for one there are tokens"
    )
    assert CandidatePlan(n=16, wave=2, budget=1).next_wave([QuestionProgress([], 0, 0)] * 3) == ([2, 2, 2], [None] * 3), (
        "each gets one wave"
    )


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("budget", [1, 300, 3000])
def test_a_budget_is_passed_by_less_than_the_last_wave(seed, budget):
    chance = random.Random(seed)
    plan = CandidatePlan(n=8, wave=chance.choice([1, 3]), budget=budget, stop_at=chance.choice([None, 0.95]))
    begun, tokens, probabilities = [0] * 6, [0] * 6, [[] for _ in range(6)]
    last = 0
    for _ in range(100):
        counts, ended = plan.next_wave([QuestionProgress(*one) for one in zip(probabilities, begun, tokens, strict=True)])
        assert all((count == 0) == (reason is not None) for count, reason in zip(counts, ended, strict=True))
        if not any(counts):
            break
        assert sum(tokens) < budget, "a wave should begin only where tokens are left"
        last = 0
        for i, count in enumerate(counts):
            assert begun[i] + count <= 8
            for _ in range(count):
                begun[i] += 1
                length = chance.randrange(1, 60)
                tokens[i], last = tokens[i] + length, last + length
                if chance.random() < 0.8:  # others are pruned
                    probabilities[i].append(chance.random())
    else:
        pytest.fail("the waves should come to an end")
    assert all(begun)
    assert sum(tokens) <= budget + last


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 0}, "n and wave must be at least 1, got 0 and 1"),
        ({"wave": 0}, "n and wave must be at least 1, got 1 and 0"),
        ({"stop_at": 0.0}, "stop_at is a probability above 0 and at most 1, got 0.0"),
        ({"stop_at": 1.1}, "stop_at is a probability"),
        ({"budget": 0}, "budget must be at least 1 token, got 0"),
        ({"min_gain": 1.0}, "min_gain is a probability from 0 to below 1, got 1.0"),
        ({"min_gain": -0.1}, "min_gain is a probability"),
    ],
)
def test_plans_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        CandidatePlan(**{"n": 1, "wave": 1, **change})
