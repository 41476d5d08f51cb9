import math
from dataclasses import replace

import numpy as np
import pytest

from swift_rm.evaluation.evaluate import evaluate
from swift_rm.evaluation.paired_questions import match
from swift_rm.evaluation.rule_comparison import agreement_table, compare, disagreements
from swift_rm.evaluation.rule_outcome import SCORES, ChosenResponse, RuleOutcome, check_rule, chosen, measure


@pytest.fixture(scope="module")
def rollouts():
    """60 questions x 8 responses with every score, some missing, and answers of which some are graded both ways."""
    from swift_rm.records.rollouts import Rollout

    rng = np.random.default_rng(5)
    made = []
    for question in range(60):
        for sample in range(8):
            answer = [*"abcde", None][rng.integers(0, 6)]
            label = int(rng.random() < (0.9 if answer == "a" else 0.1))
            ids = rng.integers(0, 50, rng.integers(2, 9)).tolist()
            extra = {
                "token_logprobs": (-rng.random(len(ids))).tolist(), "token_confidence": rng.random(len(ids)).tolist(),
                "self_certainty": None if sample == 3 else float(rng.random()),
            }  # fmt: skip
            reward = None if question % 7 == 0 and sample < 2 else float(rng.normal() + 2 * label)
            made.append(
                Rollout(
                    f"q{question}",
                    f"prompt {question}",
                    [question],
                    "said",
                    ids,
                    "stop",
                    answer,
                    label,
                    reward,
                    None,
                    extra=extra,
                )
            )
    return made


@pytest.fixture(scope="module")
def evaluation(rollouts):
    return evaluate(rollouts, vote_subsets=20, seed=3)


def side(groups, rule):
    return measure(groups, rule, vote_subsets=20, seed=3)


def test_every_rule_has_exactly_the_figures_of_evaluate(rollouts, evaluation):
    matched = match(rollouts, rollouts)
    assert set(evaluation.accuracy) == set(SCORES)
    shrunk = side(matched.b, "swift_shrunk")
    for rule in SCORES:
        comparison = compare(matched, side(matched.a, rule), shrunk, seed=3)
        assert comparison.by_k[-1].a == evaluation.accuracy[rule], rule
        assert comparison.by_k[-1].b == evaluation.accuracy["swift_shrunk"]
        assert [point.k for point in comparison.by_k] == [1, 2, 4, 8]
        if rule != "first":
            assert [point.a for point in comparison.by_k] == [evaluation.curves[rule][k - 1] for k in (1, 2, 4, 8)], rule
        assert comparison.auroc_within.a == evaluation.auroc_within.get(SCORES[rule])
        table = comparison.table
        assert table.both_right + table.only_a == pytest.approx(60 * evaluation.accuracy[rule].value)
        assert table.both_right + table.only_a + table.only_b + table.both_wrong == pytest.approx(60)


def test_the_difference_is_the_paired_one_of_evaluate(rollouts, evaluation):
    matched = match(rollouts, rollouts)
    found = compare(matched, side(matched.a, "swift_best"), side(matched.b, "majority"), seed=3).by_k[-1].difference
    expected = evaluation.paired["swift_best-majority"]
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high), abs=1e-9)


def test_the_response_chosen_is_worth_the_value_where_nothing_ties(rollouts):
    groups = match(rollouts, rollouts).a
    for rule in SCORES:
        if rule == "first":
            continue
        settled = 0
        for group, choice in zip(groups, side(groups, rule).choices, strict=True):
            if choice.place is None:
                assert choice.value == 0
            elif choice.value in (0, 1):
                settled += 1
                assert group[choice.place].label == choice.value, rule
                assert (choice.answer, choice.reward) == (group[choice.place].answer, group[choice.place].reward)
            else:  # a tie, or an answer whose responses are graded differently
                same = {one.label for one in group if one.answer == choice.answer}
                answers = {one.answer for one in group if one.answer is not None}
                assert same == {0, 1} or len(answers) > 1, rule
        assert settled > 5, rule


def test_what_is_chosen_on_four_responses():
    answers, rewards = ["x", "y", "y", None], np.array([0.3, 0.1, 0.2, 0.9])
    assert chosen("majority", np.full(4, math.nan), answers) == 1
    assert chosen("majority", rewards, answers) == 2
    assert chosen("swift_best", rewards, answers) == 3
    assert chosen("swift_vote", rewards, answers) == 2
    assert chosen("deepconf_vote", np.array([0.6, 0.2, 0.3, 9.0]), answers) == 0
    assert chosen("oracle", np.array([0.0, 0.0, 1.0, 1.0]), answers) == 2
    assert chosen("swift_best", np.full(4, math.nan), answers) is None
    assert chosen("swift_vote", np.array([math.nan, math.nan, math.nan, 1.0]), answers) is None
    assert chosen("majority", rewards, [None] * 4) is None


def test_questions_are_counted_in_parts_by_one_coin():
    table = agreement_table(np.array([1, 1, 0, 0.5, 0.5, 1 - 1e-12]), np.array([1, 0, 0, 0.5, 1, 0]))
    assert (table.both_right, table.only_a, table.only_b, table.both_wrong) == (2.0, 2.0, 0.5, 1.5)
    assert table.parted == 2


def hand_made(values, aurocs=None, answers=None):
    values = np.array(values, dtype=float)
    answers = answers or ["x"] * len(values)
    choices = [ChosenResponse(0, answer, None, value) for answer, value in zip(answers, values[:, -1].tolist(), strict=True)]
    return RuleOutcome("f", "r", values, choices, None if aurocs is None else np.array(aurocs), 0, 1.0)


def test_the_lead_changes_where_the_curves_cross(make_rollout):
    asked = [make_rollout(f"q{question}") for question in range(2) for _ in range(6)]
    matched = match(asked, asked)
    a = hand_made([[0.5004, 0.6, 0, 0.7, 0, 0.9]] * 2)
    b = hand_made([[0.5, 0.7, 0, 0.7, 0, 0.4]] * 2)
    comparison = compare(matched, a, b)
    assert [point.k for point in comparison.by_k] == [1, 2, 4, 6]
    assert [round(point.difference.value, 9) for point in comparison.by_k] == [0.0004, -0.1, 0, 0.5]
    assert comparison.lead_changes == [(2, 6)]
    assert compare(matched, a, a).lead_changes == []


def test_auroc_is_over_the_questions_with_right_and_wrong_responses(make_rollout):
    asked = [make_rollout(f"q{question}") for question in range(3)]
    a, b = hand_made([[1.0]] * 3, [0.5, math.nan, 1.0]), hand_made([[1.0]] * 3, [0.25, 0.5, math.nan])
    aurocs = compare(match(asked, asked), a, b).auroc_within
    assert (aurocs.a.value, aurocs.b.value, aurocs.difference.value) == (0.75, 0.375, 0.375)
    none = compare(match(asked, asked), a, hand_made([[1.0]] * 3, [math.nan] * 3)).auroc_within
    assert (none.b, none.difference) == (None, None)


def test_questions_that_only_one_answers_right_come_first():
    a = [
        ChosenResponse(0, answer, None, value)
        for answer, value in (("x", 1), ("x", 0), ("x", 0.5), ("x", 0), (None, 0), ("x", 0.5))
    ]
    b = [
        ChosenResponse(1, answer, None, value)
        for answer, value in (("x", 1), ("y", 0), ("y", 1), ("y", 1), (None, 0), ("x", 0.5))
    ]
    assert [one.question for one in disagreements(a, b)] == [3, 2, 1]


def test_a_question_is_an_id_with_a_prompt(make_rollout):
    a = [
        make_rollout("1", prompt="one"), make_rollout("2", prompt="two"), make_rollout("1", prompt="uno"),
        make_rollout("3", prompt=[{"role": "user", "content": "three"}], prompt_ids=[1]),
    ]  # fmt: skip
    b = [
        make_rollout("3", prompt=[{"content": "three", "role": "user"}], prompt_ids=[9, 9]),  # another model's tokens
        make_rollout("2", prompt="too"), make_rollout("1", prompt="uno"), make_rollout("1", prompt="one"),
        make_rollout("4", prompt="four"),
    ]  # fmt: skip
    matched = match(a, b)
    assert [(name, group[0].prompt) for name, group in zip(matched.names, matched.a, strict=True)] == [
        ("1", "one"), ("1#2", "uno"), ("3", [{"role": "user", "content": "three"}])
    ]  # fmt: skip
    assert [group[0].prompt for group in matched.b[:2]] == ["one", "uno"]
    assert (matched.only_a, matched.only_b) == (1, 2)


def test_prompts_in_other_tokens_are_told_apart_within_a_file(make_rollout):
    a = [make_rollout("1", prompt_ids=ids) for ids in ([1], [2], [1], [2])]
    matched = match(a, a)
    assert [[one.prompt_ids for one in group] for group in matched.a] == [[[1], [1]], [[2], [2]]]
    assert list(matched.names) == ["1", "1#2"]


def test_shared_responses_are_counted_in_any_order(make_rollout):
    a = [make_rollout("1", response=said, response_ids=ids) for said, ids in (("r", [1]), ("r", [1]), ("s", [2]))]
    b = [make_rollout("1", response=said, response_ids=ids) for said, ids in (("s", [2]), ("r", [1]), ("t", [1]))]
    assert match(a, b).shared == 2
    assert not match(a, b).same
    assert match(a, [*reversed(a)]).same


def test_what_cannot_be_compared_is_said(make_rollout):
    a = [make_rollout("1"), make_rollout("1", response="s", label=0)]
    names = ("a.jsonl", "b.jsonl")
    with pytest.raises(ValueError, match=r"^a\.jsonl \(1 questions\) and b\.jsonl \(1\) have no question in common"):
        match(a, [make_rollout("2")], None, names)
    with pytest.raises(ValueError, match=r"^a\.jsonl has 2 responses a question and b\.jsonl has 1; give -n 1"):
        match(a, a[:1], None, names)
    assert match(a, a[:1], 1, names).n == 1
    with pytest.raises(ValueError, match=r"^b\.jsonl: question '1' has 1 responses, fewer than n = 2"):
        match(a, a[:1], 2, names)
    with pytest.raises(ValueError, match=r"^b\.jsonl: 1 of 2 rollouts have no label"):
        match(a, [a[0], make_rollout("1", label=None)], None, names)
    with pytest.raises(ValueError, match=r"^1 of the responses in both a\.jsonl and b\.jsonl has"):
        match(a, [a[1], make_rollout("1", label=0)], None, names)


def test_rules_are_checked(make_rollout):
    with pytest.raises(ValueError, match=r"^unknown rule 'swift'; the rules are first, majority, length, .*oracle$"):
        check_rule("swift")
    with pytest.raises(ValueError, match=r"^a\.jsonl: the rule swift_vote needs a reward.* none of its 1 responses has it$"):
        measure([[make_rollout("1")]], "swift_vote", "a.jsonl")
    with pytest.raises(ValueError, match="needs the score 'deepconf_mean'"):
        measure([[make_rollout("1")]], "deepconf_vote")


def test_responses_of_an_api_which_tells_no_ids_are_told_apart_by_their_texts(rollouts):
    said = [replace(one, prompt_ids=[], response_ids=[], response=f"said {i}") for i, one in enumerate(rollouts)]
    others = [replace(one, response="another") if i % 8 == 0 else one for i, one in enumerate(said)]
    matched = match(said, others)
    assert (len(matched.names), matched.only_a, matched.shared) == (60, 0, 60 * 7)
    assert side(matched.a, "length").tokens == side(match(rollouts, rollouts).a, "length").tokens > 0
    with pytest.raises(ValueError, match="1 of the responses in both A and B has another label"):
        match(said, [*said[:-1], replace(said[-1], label=1 - said[-1].label)])
