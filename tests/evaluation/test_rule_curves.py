import math

import numpy as np
import pytest

from swift_rm.evaluation.rule_curves import rule_curves, scores_by_name
from swift_rm.records.rollouts import Rollout
from swift_rm.selection.rules import borda_vote, reward_vote, shrunk_vote, weighted_vote

NAN = math.nan


def test_scores_that_no_response_has_are_left_out():
    def rollout(reward, **extra):
        return Rollout("q", "p", [1], "r", [1, 2], "stop", reward=reward, extra=extra)

    groups = [[rollout(None), rollout(0.5)], [rollout(1.0, self_certainty=2.0), rollout(-1.0)]]
    scores = scores_by_name(groups, deepconf_window=8)
    assert set(scores) == {"length", "self_certainty", "swift"}
    np.testing.assert_array_equal(scores["swift"], [[NAN, 0.5], [1.0, -1.0]])
    np.testing.assert_array_equal(scores["self_certainty"], [[NAN, NAN], [2.0, NAN]])


def test_a_vote_at_n_is_the_selection_rule_where_nothing_ties():
    rng = np.random.default_rng(2)
    answers = [[None if code == 4 else "abcd"[code] for code in row] for row in rng.integers(0, 5, (40, 7))]
    labels = np.array([[float(answer == "a") for answer in row] for row in answers])
    rewards, confidence, certainty = rng.normal(size=(40, 7)) - 1, rng.random((40, 7)), rng.random((40, 7))
    rewards[0, :3] = NAN
    scores = {"swift": rewards, "deepconf_mean": confidence, "self_certainty": certainty}
    curves = rule_curves(answers, labels, scores)
    for rule, vote, score in [
        ("swift_vote", reward_vote, rewards),
        ("swift_shrunk", shrunk_vote, rewards),
        ("swift_borda", borda_vote, rewards),
        ("self_certainty_borda", borda_vote, certainty),
        ("deepconf_vote", weighted_vote, confidence),
    ]:
        elected = [vote(row.tolist(), answer) for row, answer in zip(score, answers, strict=True)]
        assert curves[rule][:, -1].tolist() == [float(answer == "a") for answer in elected], rule
        assert 0 < curves[rule][:, -1].mean() < 1


def test_an_answer_is_worth_the_mean_label_of_its_responses():
    curves = rule_curves([["1/2", "1/2", "3"]], np.array([[1.0, 0.0, 1.0]]), {"swift": np.array([[0.0, 1.0, 0.5]])})
    assert curves["majority"][0, -1] == 0.5
    assert curves["swift_vote"][0, -1] == 0.5
    assert curves["swift_best"][0, -1] == 0.0
    assert curves["oracle"][0, -1] == 1.0


def test_ties_are_broken_uniformly_at_n():
    scores = {"swift": np.array([[1.0, 1.0, 1.0]]), "deepconf_mean": np.array([[0.1, 0.2, 0.3]])}
    curves = rule_curves([["a", "a", "b"]], np.array([[0.0, 0.0, 1.0]]), scores)
    assert curves["deepconf_vote"][0, -1] == 0.5  # 0.1 + 0.2 against 0.3
    assert curves["swift_best"][0].tolist() == pytest.approx([1 / 3] * 3)
    assert curves["swift_borda"][0].tolist() == pytest.approx([1 / 3, 1 / 3, 0.0])


def test_a_question_without_rewards_or_answers_counts_zero():
    scores = {"swift": np.array([[NAN, NAN], [1.0, 0.0]])}
    curves = rule_curves([["a", "a"], [None, None]], np.ones((2, 2)), scores)
    assert curves["swift_best"].tolist() == [[0.0, 0.0], [1.0, 1.0]]
    assert curves["swift_vote"].tolist() == curves["swift_shrunk"].tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert curves["majority"].tolist() == [[1.0, 1.0], [0.0, 0.0]]


def test_sampling_errors_do_not_add_up_over_like_questions():
    # the first of 6 decides a vote it is in: half of the subsets of 3, whichever one subset is drawn for all questions
    answers, labels = [["a", "b", "c", "d", "e", "f"]] * 400, np.array([[1.0, 0, 0, 0, 0, 0]] * 400)
    scores = {"swift": np.array([[9.0, 1, 2, 3, 4, 5]] * 400)}
    curves = rule_curves(answers, labels, scores, vote_subsets=1)
    assert curves["swift_vote"][:, 2].mean() == pytest.approx(0.5, abs=0.1)  # 4 standard errors


def test_a_negative_confidence_is_refused():
    with pytest.raises(ValueError, match=r"a response has -0\.25"):
        rule_curves([["a", "b"]], np.ones((1, 2)), {"deepconf_mean": np.array([[NAN, -0.25]])})
