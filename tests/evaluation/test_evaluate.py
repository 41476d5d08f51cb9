import dataclasses
import json
import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from swift_rm.evaluation.evaluate import evaluate
from swift_rm.evaluation.intervals import paired_difference
from swift_rm.records.rollouts import Rollout


def rollout(question, answer, label, reward=None, tokens=3, **extra):
    return Rollout(question, "p", [1], "r", [5] * tokens, "stop", answer, label, reward, extra=extra)


def three_questions():
    """A question whose majority is wrong, one whose majority is right, and one that is always wrong."""
    return [
        rollout("a", "7", 0, -1.0, 2, token_logprobs=[-0.1, -0.2]),
        rollout("a", "7", 0, -2.0, 4, token_logprobs=[-0.3] * 4),
        rollout("a", "8", 1, 3.0, 6, token_logprobs=[-0.5] * 6),
        rollout("b", "1", 1, 0.5, 1, token_logprobs=[-0.2]),
        rollout("b", "1", 1, 1.5, 3, token_logprobs=[-0.3] * 3),
        rollout("b", "2", 0, 1.0, 5, token_logprobs=[-0.1] * 5),
        rollout("c", None, 0, -1.0, 2, token_logprobs=[-0.1] * 2),
        rollout("c", "4", 0, 0.0, 2, token_logprobs=[-0.1] * 2),
        rollout("c", "5", 0, 0.0, 2, token_logprobs=[-0.1] * 2),
    ]


def random_rollouts(questions, n, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for q in range(questions):
        chance = rng.random()
        for _ in range(n):
            label = int(rng.random() < chance)
            answer = "right" if label else str(rng.integers(0, 3))
            logprobs = (-rng.random(5)).tolist()
            confidence = (rng.random(5) + label / 2).tolist()
            reward = float(rng.normal() + 2 * label - 1)
            certainty = float(rng.normal())
            extra = {"token_logprobs": logprobs, "token_confidence": confidence, "self_certainty": certainty}
            rows.append(rollout(f"q{q}", answer, label, reward, **extra))
    return rows


def test_accuracy_by_hand():
    result = evaluate(three_questions(), bootstrap=100)
    values = {rule: interval.value for rule, interval in result.accuracy.items()}
    assert values == pytest.approx(
        {
            "first": (1 / 3 + 2 / 3 + 0) / 3,
            "majority": 1 / 3,
            "length": 1 / 3,  # the shortest of "b" is right
            "mean_logprob": 0.0,
            "sum_logprob": 1 / 3,  # -0.2 for the first of "b"
            "min_logprob": 0.0,
            "swift_best": 2 / 3,
            "swift_vote": 2 / 3,
            "swift_shrunk": 2 / 3,  # "a": 0.95 / (1 + 3.46) for the right answer against 0.39 / (2 + 3.46)
            "swift_borda": 1 / 3,  # "a": 1 + 2^0.5 for the wrong answer against 3^0.5
            "oracle": 2 / 3,
        }
    )
    assert result.paired["swift_best-sum_logprob"].value == pytest.approx(1 / 3)  # length, as good, is no probability
    assert (result.questions, result.n, result.unparsable, result.mixed_questions) == (3, 3, 1, 2)
    assert result.tokens_per_response == pytest.approx(27 / 9)


def test_auroc_by_hand():
    result = evaluate(three_questions(), bootstrap=100)
    assert result.auroc_within["swift"].value == pytest.approx((1.0 + 0.5) / 2)
    assert result.auroc_within["length"].value == pytest.approx((0.0 + 1.0) / 2)
    rows = three_questions()
    pooled = roc_auc_score([r.label for r in rows], [r.reward for r in rows])
    assert result.auroc_pooled["swift"].value == pytest.approx(pooled)


def test_curves_by_hand():
    result = evaluate(three_questions(), bootstrap=100)
    values = {rule: [point.value for point in curve] for rule, curve in result.curves.items()}
    assert values["oracle"] == pytest.approx([1 / 3, (2 / 3 + 1 + 0) / 3, 2 / 3])
    assert values["swift_best"] == pytest.approx([1 / 3, (2 / 3 + 2 / 3 + 0) / 3, 2 / 3])
    assert values["majority"] == pytest.approx([1 / 3, (1 / 3 + 2 / 3 + 0) / 3, 1 / 3])


def test_every_curve_ends_in_its_accuracy_and_starts_from_a_single_response():
    result = evaluate(random_rollouts(20, 5), bootstrap=100)
    assert set(result.curves) == set(result.accuracy) - {"first"}
    assert len(result.curves) == 17  # 9 baselines, 4 of the reward, majority, 2 votes, oracle
    for rule, curve in result.curves.items():
        assert len(curve) == 5
        assert curve[-1] == result.accuracy[rule]
        assert curve[0].value == pytest.approx(result.accuracy["first"].value)


def test_paired_differences_are_those_of_the_same_resamples():
    rows = random_rollouts(30, 4)
    result = evaluate(rows, bootstrap=300, seed=5)
    rivals = [name for name in result.accuracy if "logprob" in name or name in ("self_certainty",)]
    rivals += [name for name in result.accuracy if name.startswith("deepconf_") and name != "deepconf_vote"]
    assert len(rivals) == 8
    rival = max(rivals, key=lambda name: result.accuracy[name].value)
    assert list(result.paired) == [
        "swift_best-majority",
        "swift_vote-majority",
        "swift_shrunk-majority",
        f"swift_best-{rival}",
        f"swift_vote-{rival}",
        f"swift_shrunk-{rival}",
    ]
    groups = [rows[i : i + 4] for i in range(0, len(rows), 4)]
    chosen = [max(group, key=lambda r: r.reward).label for group in groups]
    sure = [max(group, key=lambda r: np.mean(r.extra["token_confidence"])).label for group in groups]
    assert rival == "deepconf_mean"  # first of four equals: the responses are shorter than the window
    expected = paired_difference(chosen, sure, bootstrap=300, seed=5)
    assert dataclasses.astuple(result.paired[f"swift_best-{rival}"]) == pytest.approx(dataclasses.astuple(expected))


def test_without_rewards_the_swift_rows_are_absent():
    rows = [dataclasses.replace(row, reward=None) for row in three_questions()]
    result = evaluate(rows, bootstrap=50)
    assert not [name for name in [*result.accuracy, *result.curves, *result.auroc_within] if name.startswith("swift")]
    assert result.paired == {}
    assert (result.brier, result.ece) == (None, None)
    assert result.accuracy["sum_logprob"].value == pytest.approx(1 / 3)


def test_missing_rewards_rank_last_and_an_unscored_question_counts_zero():
    rows = [rollout("a", "1", 1), rollout("a", "2", 0, -9.0), rollout("b", "3", 1), rollout("b", "3", 1)]
    result = evaluate(rows, bootstrap=50)
    assert result.accuracy["swift_best"].value == 0.0
    assert result.accuracy["oracle"].value == 1.0
    assert result.auroc_within["swift"].value == 0.0
    assert result.brier.value == pytest.approx((1 / (1 + math.exp(9.0))) ** 2)  # of the one with a reward


def test_probabilities_are_calibrated_or_recorded_or_the_sigmoid():
    rows = [rollout("a", "1", 1, 0.0), rollout("a", "2", 0, 0.0, probability=0.1)]
    assert evaluate(rows, bootstrap=10).brier.value == pytest.approx((0.25 + 0.01) / 2)
    assert evaluate(rows, bootstrap=10).ece.value == pytest.approx((0.5 + 0.1) / 2)
    constant = evaluate(rows, bootstrap=10, calibrated=lambda rewards: rewards + 0.8)
    assert constant.brier.value == pytest.approx((0.04 + 0.64) / 2)
    with pytest.raises(ValueError, match=r"between 0 and 1, got 1\.5"):
        evaluate(rows, bootstrap=10, calibrated=lambda rewards: rewards + 1.5)


def test_auroc_is_absent_where_no_labels_differ():
    right = evaluate([rollout("a", "1", 1, 0.0), rollout("a", "1", 1, 1.0)], bootstrap=10)
    assert (right.auroc_within, right.auroc_pooled, right.mixed_questions) == ({}, {}, 0)
    split = evaluate([rollout("a", "1", 1, 2.0), rollout("b", "1", 0, 1.0)], bootstrap=10)
    assert split.auroc_within == {}
    assert split.auroc_pooled["swift"].value == 1.0


def test_deepconf_window_reaches_the_scores():
    rows = [
        rollout("a", "1", 1, token_confidence=[2.0, 2.0]),
        rollout("a", "2", 0, token_confidence=[9.0, 1.0]),
    ]
    assert evaluate(rows, bootstrap=10).accuracy["deepconf_lowest"].value == 0.0
    assert evaluate(rows, bootstrap=10, deepconf_window=1).accuracy["deepconf_lowest"].value == 1.0


def test_results_depend_on_the_seed_alone():
    rows = random_rollouts(10, 6)
    settings = {"bootstrap": 50, "vote_subsets": 8}
    one, same, other = (evaluate(rows, seed=seed, **settings).to_dict() for seed in (1, 1, 2))
    assert one == same
    assert one["curves"]["swift_vote"][2] != other["curves"]["swift_vote"][2]
    assert one["accuracy"]["swift_vote"]["value"] == other["accuracy"]["swift_vote"]["value"]


def test_n_takes_the_first_responses_of_each_question():
    rows = three_questions()
    extra = rollout("a", "8", 1, 9.0)
    with pytest.raises(ValueError, match="question 'b' has 3 responses, but 'a' has 4; give n"):
        evaluate([*rows, extra])
    assert evaluate([*rows, extra], n=3, bootstrap=20) == evaluate(rows, bootstrap=20)
    with pytest.raises(ValueError, match="question 'b' has 3 responses, fewer than n = 4"):
        evaluate([*rows, extra], n=4)
    assert evaluate(rows, n=1, bootstrap=20).accuracy["swift_best"].value == pytest.approx(1 / 3)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="no rollouts"):
        evaluate([])
    with pytest.raises(ValueError, match="2 of 10 rollouts have no label"):
        evaluate([rollout("z", "1", None), rollout("z", "1", None), *random_rollouts(2, 4)])
    with pytest.raises(ValueError, match="n must be at least 1 response a question, got 0"):
        evaluate(three_questions(), n=0)
    with pytest.raises(ValueError, match="window must be at least 1 token, got 0"):
        evaluate(three_questions(), deepconf_window=0)


def test_to_dict_is_json_with_the_keys_scripts_rely_on():
    result = evaluate(three_questions(), bootstrap=20).to_dict()
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert list(result) == [
        "questions",
        "n",
        "accuracy",
        "paired",
        "auroc_within",
        "auroc_pooled",
        "curves",
        "brier",
        "ece",
        "unparsable",
        "mixed_questions",
        "tokens_per_response",
        "calibration",
    ]
    assert set(result["accuracy"]["swift_best"]) == {"value", "low", "high"}
    assert [point["k"] for point in result["curves"]["majority"]] == [1, 2, 3]
    assert result["curves"]["majority"][2] == {"k": 3, **result["accuracy"]["majority"]}


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    # 60 data sets of 40 questions with a mean label of 1 / 2: 90 % intervals should hold it about 54 times
    held = 0
    for seed in range(60):
        first = evaluate(random_rollouts(40, 2, seed), bootstrap=200, confidence=0.9).accuracy["first"]
        held += first.low <= 0.5 <= first.high
    assert 47 <= held <= 59
