import math
from itertools import combinations

import numpy as np
import pytest

from swift_rm.evaluation.subset_accuracy import Subsets, best_of_curves, borda_weights, fixed_weights, majority_curve, vote_curve
from swift_rm.selection.rules import borda_votes, shrunk_means

NAN = math.nan


def brute_force(n, value):
    """Average value(subset) over all subsets of each size."""
    return [np.mean([value(list(subset)) for subset in combinations(range(n), k)]) for k in range(1, n + 1)]


def brute_best(scores, labels):
    def value(subset):
        known = [i for i in subset if not math.isnan(scores[i])]
        tops = [i for i in known if scores[i] == max(scores[j] for j in known)]
        return sum(labels[i] for i in tops) / len(tops) if tops else 0.0

    return brute_force(len(scores), value)


def brute_vote(weigh, codes, values, shrink=False):
    def value(subset):
        votes = [(codes[i], w) for i, w in zip(subset, weigh(subset), strict=True) if codes[i] >= 0 and not math.isnan(w)]
        totals = {code: sum(w for other, w in votes if other == code) for code, _ in votes}
        if shrink:
            totals = {c: t / (sum(other == c for other, _ in votes) + 2 * math.sqrt(len(votes))) for c, t in totals.items()}
        tops = [code for code, total in totals.items() if math.isclose(total, max(totals.values()), rel_tol=1e-9)]
        return sum(values[code] for code in tops) / len(tops) if tops else 0.0

    return brute_force(len(codes), value)


def test_best_of_by_hand():
    # the best of 2 among scores 3, 2, 1 is the first with 2 / 3, the second with 1 / 3
    curves = best_of_curves(np.array([[1.0, 3.0, 2.0]]), np.array([[1.0, 0.0, 1.0]]))
    assert curves[0].tolist() == pytest.approx([2 / 3, 1 / 3, 0.0])


@pytest.mark.parametrize("case", range(6))
def test_best_of_equals_enumeration_with_ties_and_nan(case):
    rng = np.random.default_rng(case)
    n = [1, 2, 5, 6, 7, 8][case]
    scores = rng.integers(0, 4, (5, n)).astype(float)
    scores[rng.random((5, n)) < 0.2] = NAN
    scores[0] = NAN
    labels = rng.integers(0, 2, (5, n)).astype(float)
    expected = [brute_best(s, y) for s, y in zip(scores, labels, strict=True)]
    np.testing.assert_allclose(best_of_curves(scores, labels), expected, atol=1e-12)


def test_best_of_takes_infinite_scores():
    curves = best_of_curves(np.array([[-np.inf, -np.inf, NAN]]), np.array([[1.0, 0.0, 1.0]]))
    assert curves[0].tolist() == pytest.approx(brute_best([-math.inf, -math.inf, NAN], [1.0, 0.0, 1.0]))


def test_best_of_by_label_is_pass_at_k():
    for n, right in [(8, 3), (64, 1), (64, 63), (5, 0), (5, 5)]:
        labels = np.array([[1.0] * right + [0.0] * (n - right)])
        expected = [1 - math.comb(n - right, k) / math.comb(n, k) for k in range(1, n + 1)]
        np.testing.assert_allclose(best_of_curves(labels, labels)[0], expected, atol=1e-12)


def test_majority_by_hand():
    # answers a a b, a is right: of two, {a a} wins, {a b} twice ties
    assert majority_curve(np.array([0, 0, 1]), np.array([1.0, 0.0])).tolist() == pytest.approx([2 / 3, 2 / 3, 1.0])


CODES = [
    [0],
    [-1],
    [0, 1],
    [0, 1, 2, 3, 4, 5, 6],
    [0, 0, 0, 0, 0],
    [0, 0, 1, 1, 2, 2, 3, 3, -1],
    [0, 1, 1, 2, 2, 2, -1, -1],
    [-1, -1, -1],
    [0, 0, 0, 1, 1, 2, 3, 0, 1],
]


@pytest.mark.parametrize("codes", CODES)
def test_majority_equals_enumeration(codes):
    values = np.random.default_rng(len(codes)).random(max(codes) + 1)
    expected = brute_vote(lambda subset: [1.0] * len(subset), codes, values)
    np.testing.assert_allclose(majority_curve(np.array(codes), values), expected, atol=1e-12)


def test_majority_stays_exact_for_many_responses():
    # two answers, 40 and 24 of 64 votes: the first wins with more than half of k, and with half of the ties
    codes = np.array([0] * 40 + [1] * 24)
    expected = [
        sum(math.comb(40, a) * math.comb(24, k - a) * (1.0 if 2 * a > k else 0.5 * (2 * a == k)) for a in range(k + 1))
        / math.comb(64, k)
        for k in range(1, 65)
    ]
    np.testing.assert_allclose(majority_curve(codes, np.array([1.0, 0.0])), expected, atol=1e-12)
    np.testing.assert_allclose(majority_curve(np.arange(64), np.ones(64)), np.ones(64), atol=1e-12)


def test_majority_refuses_what_floats_cannot_count():
    with pytest.raises(ValueError, match="at most 1000 responses a question, got 1001"):
        majority_curve(np.zeros(1001, dtype=np.int64), np.ones(1))


def test_subsets_are_all_where_they_are_few():
    subsets = Subsets(5, 10, np.random.default_rng(0))
    assert subsets.sizes.tolist() == [5, 10, 10, 5, 1]
    assert len({tuple(row) for row in subsets.members}) == 31
    assert sorted(subsets.members.sum(axis=1).tolist()) == sorted([1] * 5 + [2] * 10 + [3] * 10 + [4] * 5 + [5])
    sampled = Subsets(5, 9, np.random.default_rng(0))
    assert sampled.sizes.tolist() == [5, 9, 9, 5, 1]
    assert sampled.members.sum(axis=1).tolist() == [1] * 5 + [2] * 9 + [3] * 9 + [4] * 5 + [5]
    with pytest.raises(ValueError, match="at least 1 subset of each size, got 0"):
        Subsets(5, 0, np.random.default_rng(0))


def vote_cases():
    rng = np.random.default_rng(3)
    for n in (1, 2, 4, 6, 8):
        for _ in range(4):
            scores = rng.integers(0, 4, n) / 10  # 0.1 + 0.2 against 0.3: a tie that floats miss
            scores[rng.random(n) < 0.15] = NAN
            yield scores, rng.integers(-1, 3, n)
    yield np.array([0.0, 0.0, 0.0]), np.array([0, 1, -1])
    yield np.array([NAN, NAN]), np.array([0, 1])
    yield np.array([0.5, 0.25]), np.array([-1, -1])
    # of 6 scored, first place has 6^0.5 votes, the last two 1 + 2^0.5: less, unless the unscored are ranked below them
    yield np.array([6.0, 5.0, 4.0, 3.0, 2.0, 1.0, NAN, NAN]), np.array([0, 2, 3, 4, 1, 1, 0, 1])


@pytest.mark.parametrize(("scores", "codes"), list(vote_cases()))
@pytest.mark.parametrize("borda", [False, True])
def test_votes_equal_enumeration(borda, scores, codes):
    values = np.array([1.0, 0.0, 0.25, 0.0, 0.5])[: max(codes.max() + 1, 0)]
    subsets = Subsets(len(codes), 100, np.random.default_rng(0))
    expected = brute_vote(lambda s: borda_votes(scores[s]) if borda else scores[s], codes, values)
    curve = vote_curve(borda_weights if borda else fixed_weights, scores, codes, values, subsets)
    np.testing.assert_allclose(curve, expected, atol=1e-12)


@pytest.mark.parametrize(("scores", "codes"), list(vote_cases()))
def test_shrunk_means_equal_enumeration(scores, codes):
    values = np.array([1.0, 0.0, 0.25, 0.0, 0.5])[: max(codes.max() + 1, 0)]
    subsets = Subsets(len(codes), 100, np.random.default_rng(0))
    curve = vote_curve(fixed_weights, scores, codes, values, subsets, shrunk_means)
    np.testing.assert_allclose(curve, brute_vote(lambda s: scores[s], codes, values, shrink=True), atol=1e-12)


def test_curves_at_some_sizes_are_those_at_all():
    rng = np.random.default_rng(1)
    scores, codes, values = rng.random(8), rng.integers(0, 3, 8), np.array([1.0, 0.0, 0.5])
    whole, some = (Subsets(8, 70, rng, sizes) for sizes in (None, [1, 4, 8]))
    curve = vote_curve(fixed_weights, scores, codes, values, whole)
    np.testing.assert_allclose(vote_curve(fixed_weights, scores, codes, values, some), curve[[0, 3, 7]], atol=1e-12)


def test_sampled_votes_approach_enumeration():
    rng = np.random.default_rng(5)
    scores, codes, values = rng.random(10), rng.integers(0, 3, 10), np.array([1.0, 0.0, 0.5])
    sampled = vote_curve(fixed_weights, scores, codes, values, Subsets(10, 150, rng))
    expected = brute_vote(lambda s: scores[s], codes, values)
    np.testing.assert_allclose(sampled, expected, atol=0.12)  # 3 standard errors of 0.5 / sqrt(150)
    np.testing.assert_allclose(sampled[[0, 1, 7, 8, 9]], np.array(expected)[[0, 1, 7, 8, 9]], atol=1e-12)
    assert not np.allclose(sampled[2:7], expected[2:7], atol=1e-12)
