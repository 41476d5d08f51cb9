import math

import numpy as np
import pytest

from swift_rm.selection.rule_table import RULES
from swift_rm.selection.rules import (
    Selection,
    best,
    borda_vote,
    borda_votes,
    fuse_rank,
    fuse_scale,
    majority_vote,
    reward_vote,
    reward_weights,
    select,
    shrunk_means,
    shrunk_vote,
    weighted_vote,
)

NAN = math.nan


@pytest.mark.parametrize(
    ("rewards", "index"),
    [([0.1, 0.9, 0.5], 1), ([2.0, 2.0], 0), ([NAN, -5.0, NAN], 1), ([None, -1.0, 3.0], 2), ([-math.inf, NAN], 0)],
)
def test_best_is_the_first_of_the_highest(rewards, index):
    assert best(rewards) == index


@pytest.mark.parametrize(("rewards", "count"), [([], 0), ([NAN, None, NAN], 3)])
def test_best_refuses_candidates_without_rewards(rewards, count):
    with pytest.raises(ValueError, match=f"none of the {count} candidates has a reward"):
        best(rewards)


@pytest.mark.parametrize(
    ("answers", "winner"),
    [(["a", "b", "b"], "b"), (["b", "a", "a", "b"], "b"), ([None, None, "a"], "a"), ([None, None], None), ([], None)],
)
def test_majority_vote(answers, winner):
    assert majority_vote(answers) == winner


def test_weighted_vote_sums_per_answer():
    assert weighted_vote([0.5, 0.3, 0.3], ["a", "b", "b"]) == "b"
    assert weighted_vote([0.7, 0.3, 0.3], ["a", "b", "b"]) == "a"
    assert weighted_vote([NAN, 0.1, 9.0], ["a", "b", None]) == "b"
    assert weighted_vote([NAN, 1.0], ["a", None]) is None
    assert weighted_vote([0.0, 0.0], ["b", "a"]) == "b"


def test_weighted_vote_ties_go_to_the_first_whatever_the_order_of_adding():
    assert weighted_vote([0.1, 0.3, 0.2, 0.2, 0.3, 0.1], ["b", "a", "b", "a", "b", "a"]) == "b"
    assert weighted_vote([0.3, 0.1, 0.2, 0.2, 0.1, 0.3], ["a", "b", "a", "b", "a", "b"]) == "a"


def test_weighted_vote_refuses_bad_input():
    with pytest.raises(ValueError, match=r"0 or more, got -0\.25"):
        weighted_vote([1.0, -0.25], ["a", "b"])
    with pytest.raises(ValueError, match="2 weights but 3 answers"):
        weighted_vote([1.0, 1.0], ["a", "b", "c"])


def test_reward_vote_adds_probabilities():
    # sigmoid: 0.881 for "a"; 0.5 + 0.378 = 0.878 or 0.5 + 0.5 = 1 for "b"
    assert reward_vote([2.0, 0.0, -0.5], ["a", "b", "b"]) == "a"
    assert reward_vote([2.0, 0.0, 0.0], ["a", "b", "b"]) == "b"
    assert reward_weights([2.0, 0.0, NAN])[:2].tolist() == pytest.approx([1.0, 0.5 * (1 + math.exp(-2.0))])


def test_reward_vote_temperature_moves_from_counting_to_the_sure():
    rewards, answers = [3.0, -1.0, -1.0, -1.0], ["a", "b", "b", "b"]
    assert reward_vote(rewards, answers, temperature=100.0) == "b"
    assert reward_vote(rewards, answers, temperature=0.1) == "a"
    with pytest.raises(ValueError, match=r"above 0, got 0\.0"):
        reward_vote(rewards, answers, temperature=0.0)


def test_reward_vote_survives_extreme_rewards():
    assert reward_vote([-2001.0, -2000.0], ["a", "b"]) == "b"
    assert reward_vote([-math.inf, -5.0], ["a", "b"]) == "b"
    assert reward_vote([-math.inf, -math.inf], ["a", "b"]) == "a"
    assert reward_vote([NAN, NAN], ["a", "b"]) is None


def test_the_mean_is_shrunk_by_support():
    totals, counts = np.array([[1.8, 0.4], [0.0, 3.0]]), np.array([[3.0, 1.0], [0.0, 9.0]])
    expected = [[1.8 / (3 + 4), 0.4 / (1 + 4)], [0.0, 3.0 / (9 + 6)]]
    np.testing.assert_allclose(shrunk_means(totals, counts), expected)


def test_shrunk_vote_resists_the_outlier_and_the_popular_mistake():
    outlier = [6.0] + [2.0] * 4 + [-3.0] * 11
    answers = ["x"] + ["a"] * 4 + ["b"] * 11
    assert best(outlier) == 0
    # 2 sqrt(16) = 8: "x" 0.998 / 9, "a" 4 x 0.881 / 12, "b" 11 x 0.047 / 19
    assert shrunk_vote(outlier, answers) == "a"
    popular, answers = [1.5] * 4 + [-0.5] * 12, ["a"] * 4 + ["b"] * 12
    assert reward_vote(popular, answers) == "b"  # 4 x 0.818 against 12 x 0.378
    assert shrunk_vote(popular, answers) == "a"  # 3.27 / 12 against 4.53 / 20


def test_shrunk_vote_is_best_where_all_answers_differ():
    rng = np.random.default_rng(0)
    for rewards in rng.normal(0, 3, (20, 6)):
        answers = [*map(str, range(6))]
        assert shrunk_vote(rewards, answers) == answers[best(rewards)]
        assert select("shrunk", rewards, [None] * 6) == Selection(best(rewards), None)


def test_shrunk_vote_counts_only_those_that_vote():
    # 2 voters: 0.731 / (1 + 2.83) against 0.5 / (1 + 2.83); neither NaN nor a missing answer shrinks or dilutes
    assert shrunk_vote([1.0, 0.0, NAN, 9.0], ["a", "b", "a", None]) == "a"
    assert shrunk_vote([NAN, 1.0], ["a", None]) is None
    assert shrunk_vote([0.0, 1.0, 1.0, 0.0], ["b", "a", "b", "a"]) == "b"  # a tie goes to the first
    assert shrunk_vote([-2001.0, -2000.0], ["a", "b"]) == "b"
    assert shrunk_vote([-math.inf, -5.0], ["a", "b"]) == "b"


def test_borda_votes_are_powers_of_the_rank_from_below():
    assert borda_votes([0.2, 0.9, 0.5], p=0.5).tolist() == pytest.approx([1.0, 3**0.5, 2**0.5])
    assert borda_votes([0.5, 0.9, 0.5, 0.1], p=2).tolist() == pytest.approx([6.5, 16.0, 6.5, 1.0])  # (4 + 9) / 2
    votes = borda_votes([NAN, 0.9, 0.5], p=1)
    assert math.isnan(votes[0])
    assert votes[1:].tolist() == [2.0, 1.0]


def test_borda_vote():
    scores, answers = [0.9, 0.5, 0.4], ["a", "b", "b"]
    assert borda_vote(scores, answers) == "b"  # 3^0.5 = 1.73 against 2^0.5 + 1 = 2.41
    assert borda_vote(scores, answers, p=2) == "a"  # 9 against 4 + 1
    assert borda_vote([NAN, NAN, 0.1], answers) == "b"
    assert borda_vote([NAN, NAN, NAN], answers) is None
    with pytest.raises(ValueError, match=r"0 or more, got -1"):
        borda_vote(scores, answers, p=-1)


def test_fuse_rank_minimises_the_worse_rank():
    # ranks (1, 3), (2, 2), (3, 1): the second is worst 2
    fused = fuse_rank([9.0, 5.0, 1.0], [10.0, 20.0, 30.0])
    assert best(fused) == 1
    assert fused == pytest.approx([-3 - 4 / 16, -2 - 4 / 16, -3 - 4 / 16])


def test_fuse_rank_breaks_ties_by_the_sum_of_ranks():
    # ranks (1, 4), (4, 3), (2, 2), (3, 1): the first two share the worse rank 4, sums 5 and 7
    fused = fuse_rank([4.0, 1.0, 3.0, 2.0], [1.0, 2.0, 3.0, 4.0])
    assert fused[2] > fused[3] > fused[0] > fused[1]
    assert fused[0] - fused[1] < 0.5


def test_fuse_rank_shares_equal_ranks_and_leaves_nan_out():
    fused = fuse_rank([5.0, 5.0, NAN, 1.0], [2.0, 1.0, 9.0, None])
    assert fused[:2] == pytest.approx([-1.5 - 2.5 / 20, -2.0 - 3.5 / 20])
    assert math.isnan(fused[2])
    assert math.isnan(fused[3])


def test_fuse_scale_means_the_scaled_scores():
    assert fuse_scale([0.0, 5.0, 10.0], [1.0, 3.0, 2.0]) == pytest.approx([0.0, 0.75, 0.75])
    assert fuse_scale([7.0, 7.0], [0.0, 1.0]) == pytest.approx([0.25, 0.75])
    fused = fuse_scale([NAN, 0.0, 2.0], [100.0, 5.0, 5.0])
    assert math.isnan(fused[0])
    assert fused[1:] == pytest.approx([0.25, 0.75])
    assert all(math.isnan(value) for value in fuse_scale([NAN, 1.0], [1.0, NAN]))


def test_fusion_refuses_bad_input():
    with pytest.raises(ValueError, match="2 rewards but 1 external rewards"):
        fuse_rank([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="must be finite, got inf"):
        fuse_scale([1.0, math.inf], [1.0, 2.0])


REWARDS = [2.0, -1.0, 0.0, 0.5, -0.5]
ANSWERS = ["a", "b", "b", "b", None]


@pytest.mark.parametrize(
    ("rule", "index"),
    [
        ("best", 0),
        ("majority", 3),
        ("vote", 3),  # 0.88 for a, 0.27 + 0.5 + 0.62 for b
        ("shrunk", 3),  # 0.88 / (1 + 4) = 0.176, 1.39 / (3 + 4) = 0.199; the one without an answer is no voter
        ("borda", 3),
        ("rank", 3),  # ranks (1, 5), (5, 4), (3, 3), (2, 2), (4, 1)
        ("scale", 3),  # (1 + 0) / 2, (0 + 0.25) / 2, (1/3 + 0.5) / 2, (0.5 + 0.75) / 2, (1/6 + 1) / 2
    ],
)
def test_select_by_name(rule, index):
    assert select(rule, REWARDS, ANSWERS, [1.0, 2.0, 3.0, 4.0, 5.0]) == Selection(index, ANSWERS[index])


def test_select_knows_every_rule_it_lists():
    assert {select(rule, [1.0], ["a"], [1.0]) for rule in RULES} == {Selection(0, "a")}


def test_select_takes_the_best_scored_elector():
    assert select("majority", [NAN, -3.0, -2.0, 9.0], ["b", "b", "b", "a"]) == Selection(2, "b")
    for rule in ("vote", "shrunk"):
        assert select(rule, [1.0, NAN, 0.9, 0.9], ["a", "b", "b", "b"]) == Selection(2, "b")


def test_select_falls_back_to_best_where_nobody_votes():
    for rule in ("majority", "vote", "shrunk", "borda"):
        assert select(rule, [0.1, 0.7], [None, None]) == Selection(1, None)
    for rule in ("vote", "shrunk"):
        assert select(rule, [NAN, 0.7], ["a", None]) == Selection(1, None)


def test_majority_needs_no_rewards():
    assert select("majority", [None, None, NAN], ["a", "b", "b"]) == Selection(1, "b")
    assert select("majority", [9.0, NAN, NAN], ["a", "b", "b"]) == Selection(1, "b")
    assert select("majority", [NAN, NAN], [None, None]) == Selection(0, None)
    with pytest.raises(ValueError, match="none of the 0 candidates"):
        select("majority", [], [])
    with pytest.raises(ValueError, match="none of the 2 candidates"):
        select("vote", [NAN, NAN], ["a", "a"])


def test_select_refuses_bad_input():
    with pytest.raises(
        ValueError, match="unknown selection rule 'bset'; the rules are shrunk, best, majority, vote, borda, rank"
    ):
        select("bset", [1.0], ["a"])
    with pytest.raises(ValueError, match="2 rewards but 1 answers"):
        select("best", [1.0, 2.0], ["a"])
    for rule in ("rank", "scale"):
        with pytest.raises(ValueError, match=f"'{rule}' needs the external rewards"):
            select(rule, [1.0], ["a"])
