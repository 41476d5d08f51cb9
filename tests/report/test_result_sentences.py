import pytest

from swift_rm.evaluation.evaluate import evaluate
from swift_rm.report.question_summary import summarise_questions
from swift_rm.report.result_sentences import FEW, findings, headline


def question(make_rollout, name, answers, labels, rewards, **fields):
    return [
        make_rollout(name, answer=answer, label=int(label), reward=reward, **fields)
        for answer, label, reward in zip(answers, labels, rewards, strict=True)
    ]


def said(groups):
    data = evaluate([one for group in groups for one in group], bootstrap=50).to_dict()
    return " ".join([headline(data), *findings(data, summarise_questions(groups))])


def sure(make_rollout, right, wrong, reward):
    """Questions of two responses of which the first, of this reward, is chosen."""
    labels = ["10"] * right + ["01"] * wrong
    return [question(make_rollout, f"q{i}", "ab", label, [reward, -9.0]) for i, label in enumerate(labels)]


@pytest.mark.parametrize(("right", "word"), [(1, "right"), (0, "wrong")])
def test_one_question_has_no_verdict_and_no_interval(make_rollout, right, word):
    told = said(sure(make_rollout, right, 1 - right, 3.44))
    assert f"gives the one response that swift_shrunk chose a probability of 96.9 % of being right, and it is {word}: one" in told
    assert "one question does not tell whether it is too sure or too modest." in told
    assert "it is too sure of" not in told and "it is too modest about" not in told and "(a difference" not in told


@pytest.mark.parametrize(
    ("right", "wrong", "reward", "verdict"),
    [
        (FEW - 1, 0, 0.0, "so few questions do not tell whether it is too sure or too modest (a difference of"),
        (0, 2, 3.0, "so few questions do not tell"), (FEW, 0, 0.0, "it is too modest about its choices"),
        (0, FEW, 0.0, "it is too sure of its choices"), (5, 35, 3.0, "it is too sure of its choices"),
        (FEW, 0, 3.0, "as promised"),  # all right, which 0.953 ** 30 = 0.23 is not too little for
        (0, FEW, -3.0, "as promised"), (38, 2, 3.0, "as promised"),
    ],
)  # fmt: skip
def test_a_verdict_needs_questions_and_a_difference(make_rollout, right, wrong, reward, verdict):
    assert f"are: {verdict}" in said(sure(make_rollout, right, wrong, reward))


def test_answers_graded_both_ways_are_counted(make_rollout):
    whole = [question(make_rollout, f"q{i}", "ab", "10", [1.0, 0.0]) for i in range(3)]
    assert "graded both ways" not in said(whole)
    parted = question(make_rollout, "p", "aa", "10", [2.0, 1.0])
    told = said([*whole, parted])
    assert "1 question has an answer whose responses are graded both ways: figures and charts count the share" in told
    assert "answers 87.5 % [" in told and "and 100.0 % are" in told  # what would contradict without it
    assert "2 questions have an answer" in said([*whole, parted, question(make_rollout, "r", "aa", "10", [None, None])])
    unscored = [question(make_rollout, "p", "aa", "10", [None, None], logprob_mean=None)]
    assert "1 question has an answer whose responses are graded both ways" in said(unscored)


def test_responses_without_a_reward_are_counted(make_rollout):
    groups = [question(make_rollout, f"q{i}", "abc", "100", [None if i else 1.0, 0.5, -1.0]) for i in range(3)]
    assert "2 of 9 responses have no reward: such a response ranks below all others and is never chosen" in said(groups)
    assert "where it is right; the calibration figures are of 7 responses." in said(groups)
    assert "1 of 3 responses has no reward" in said([question(make_rollout, "q", "abc", "100", [None, 0.5, 1.0])])
    known = [question(make_rollout, "q", "abc", "100", [None, 0.5, 1.0], extra={"probability": 0.5})]
    assert "where it is right." in said(known)
    for none in ([1.0, 0.5, 0.0], [None] * 3):
        assert "no reward:" not in said([question(make_rollout, "q", "abc", "100", none, logprob_mean=None)])


def test_one_is_not_plural(make_rollout):
    told = said([question(make_rollout, "q", [None], "0", [1.0])])
    assert "Of 1 question with 1 response each, swift_shrunk" in told
    assert "Of 1 question swift_shrunk missed 0" in told
    assert "1 of 1 response has no answer, and cannot be elected." in told
