"""Accuracy as a function of k: the expectation over subsets of k of a question's N responses, not over the first k.

Best-of-k and majority vote have closed forms; weighted votes have none and are averaged over subsets, all of them where
they are few. Every tie is broken uniformly. Answers are codes: 0 ... A - 1, and -1 for a response without an answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import combinations

import numpy as np
import numpy.typing as npt

from swift_rm.selection.rules import BORDA_POWER

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

TIE = 1e-9  # relative difference below which two sums of weights are a tie: they differ by the order of adding only
LARGEST_N = 1000  # binomial coefficients beyond it leave the range of float64


def best_of_curves(scores: Floats, labels: Floats) -> Floats:
    """Return the exact expected label of the best-scored of k responses, [Q, N] for k = 1 ... N.

    ``scores`` and ``labels`` are [Q, N]. The response at place i of the descending order (0 = highest) is the best of a
    subset with probability C(N - 1 - i, k - 1) / C(N, k); equal scores share the mean of their labels. NaN is never
    chosen: a subset without any score counts 0. With ``scores`` = ``labels`` this is pass@k, 1 - C(N - c, k) / C(N, k).
    """
    n = scores.shape[1]
    order = np.argsort(-scores, axis=1, kind="stable")  # NaN goes last
    ranked = np.take_along_axis(scores, order, axis=1)
    gains = np.where(np.isnan(ranked), 0.0, np.take_along_axis(labels, order, axis=1))
    starts = np.ones(ranked.shape, dtype=bool)
    starts[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    group = np.cumsum(starts.ravel()) - 1
    shared = (np.bincount(group, weights=gains.ravel()) / np.bincount(group))[group].reshape(ranked.shape)
    sizes = np.arange(1, n + 1)
    chances = np.empty((n, n))  # [place, k - 1]
    chances[0] = sizes / n
    for place in range(1, n):
        chances[place] = chances[place - 1] * (n - sizes - place + 1) / (n - place)  # 0 from place n - k + 1 on
    return np.asarray(shared @ chances)


def majority_curve(codes: Ints, values: Floats) -> Floats:
    """Return the exact expected value of the majority vote among k responses, [N] for k = 1 ... N.

    ``codes`` is [N], ``values`` [A] the value of electing each answer. A subset without any answer counts 0.

    With c_b the count of answer b, answer a wins a subset at m votes, t others at m too, with weight 1 / (t + 1),
    which is the integral of y^t over 0 ... 1. So the subsets, by their size as a power of x, are counted by

        sum_m sum_a values_a C(c_a, m) x^m  integral prod_{b != a} (sum_{j < m} C(c_b, j) x^j + y C(c_b, m) x^m) dy

    times (1 + x)^(number without answer). Gauss-Legendre nodes make the integral exact, and the product rule gives the
    sum over a in one pass over the answers. Raises ValueError if N is above ``LARGEST_N``.
    """
    n = len(codes)
    if n > LARGEST_N:
        raise ValueError(f"the exact majority curve takes at most {LARGEST_N} responses a question, got {n}")
    counts = np.bincount(codes[codes >= 0], minlength=len(values))
    silent = n - int(counts.sum())
    if silent == n:
        return np.zeros(n)
    # One row per pair of m and node: at m the integrand's degree in y is the number of answers with m votes, less one.
    rows = [(m, *node) for m in range(1, counts.max() + 1) for node in _nodes(-(-int((counts >= m).sum()) // 2))]
    votes, y, weight = (np.array(column)[:, None] for column in zip(*rows, strict=True))
    ways = np.zeros((len(rows), n + 1))  # of drawing that many, no answer above m
    ways[:, 0] = 1.0
    elected = np.zeros_like(ways)  # the same, with one answer at m marked as the winner and its value counted
    for count, value in zip(counts.tolist(), values.tolist(), strict=True):
        draws, choose = np.arange(count + 1), _binomials(count)
        at_m = choose * (draws == votes)
        factor = choose * (draws < votes) + y * at_m
        old_ways, old_elected = ways, elected
        ways, elected = np.zeros_like(ways), np.zeros_like(ways)
        for j in range(count + 1):
            f, g, kept = factor[:, j, None], value * at_m[:, j, None], n + 1 - j
            ways[:, j:] += f * old_ways[:, :kept]
            elected[:, j:] += f * old_elected[:, :kept] + g * old_ways[:, :kept]
    total = np.convolve((weight * elected).sum(axis=0), _binomials(silent))[: n + 1]
    return np.asarray(total[1:] / _binomials(n)[1:])


@cache
def _binomials(n: int) -> Floats:
    return np.array([math.comb(n, j) for j in range(n + 1)], dtype=np.float64)


@cache
def _nodes(count: int) -> list[tuple[float, float]]:
    points, weights = np.polynomial.legendre.leggauss(count)
    return [((float(point) + 1) / 2, float(weight) / 2) for point, weight in zip(points, weights, strict=True)]


class Subsets:
    """Subsets of N responses for each size, k = 1 ... N or ``sizes``: all C(N, k), or ``samples`` random ones of more.

    ``members`` is [P, N] of 0 and 1, by size. The same subsets serve every question; so that their luck does not add up
    over the questions, the caller shuffles each question's responses first. Raises ValueError for ``samples`` below 1.
    """

    def __init__(self, n: int, samples: int, rng: np.random.Generator, sizes: Sequence[int] | None = None) -> None:
        if samples < 1:
            raise ValueError(f"a vote's curve needs at least 1 subset of each size, got {samples}")
        parts = []
        for k in sizes or range(1, n + 1):
            if math.comb(n, k) <= samples:
                chosen = np.array(list(combinations(range(n), k)))
            else:
                chosen = rng.random((samples, n)).argpartition(k - 1, axis=1)[:, :k]
            part = np.zeros((len(chosen), n))
            np.put_along_axis(part, chosen, 1.0, axis=1)
            parts.append(part)
        self.members = np.concatenate(parts)
        self.sizes = np.array([len(part) for part in parts])

    def mean(self, values: Floats) -> Floats:
        """Return the mean of the subsets' values [P] for each size."""
        starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        return np.asarray(np.add.reduceat(values, starts) / self.sizes)


Weigh = Callable[[Floats, Floats], Floats]


def fixed_weights(members: Floats, weights: Floats) -> Floats:
    """Return the votes [P, N] of responses whose weight [N] is the same in every subset."""
    return members * weights


def borda_weights(members: Floats, scores: Floats, p: float = BORDA_POWER) -> Floats:
    """Return the Borda votes [P, N] of responses with these scores [N], ranked within each subset.

    See :func:`swift_rm.selection.rules.borda_votes`; a vote shared by equal scores is a difference of sums of j^p over j.
    """
    lower = (scores[:, None] < scores).astype(np.float64)
    equal = (scores[:, None] == scores).astype(np.float64)
    below = (members @ lower).astype(np.int64)
    if equal.sum() == len(scores):
        return np.asarray(members * (below + 1.0) ** p)
    tied = np.maximum((members @ equal).astype(np.int64), 1)
    sums = np.concatenate([[0.0], np.cumsum(np.arange(1, len(scores) + 2) ** float(p))])
    return np.asarray(members * (sums[below + tied] - sums[below]) / tied)


Count = Callable[[Floats, Floats], Floats]


def sums(totals: Floats, counts: Floats) -> Floats:
    """Return the answers' sums of votes [P, A] as they are."""
    return totals


def vote_curve(weigh: Weigh, scores: Floats, codes: Ints, values: Floats, subsets: Subsets, count: Count = sums) -> Floats:
    """Return the expected value of a weighted vote among k responses for each size k of ``subsets``.

    ``scores`` and ``codes`` are [N], ``values`` [A]; ``weigh`` gives the responses' votes in each subset, ``count`` what
    an answer has from its sum of votes and their number (the sum, or :func:`swift_rm.selection.rules.shrunk_means`). Responses
    with a NaN score or without an answer do not vote; a subset in which nobody votes counts 0. Exact for sizes with few
    subsets, k = N among them, otherwise an average over ``subsets``.
    """
    voters = ~np.isnan(scores)
    ballots = np.zeros((len(codes), len(values)))  # [N, A]: whom each response votes for
    ballots[np.arange(len(codes))[voters & (codes >= 0)], codes[voters & (codes >= 0)]] = 1.0
    members = subsets.members * voters
    totals = count(weigh(members, np.where(voters, scores, 0.0)) @ ballots, members @ ballots)
    peak = totals.max(axis=1, initial=0.0, keepdims=True)
    winners = (totals >= peak * (1 - TIE)).astype(np.float64)
    weightless = peak[:, 0] == 0  # only votes of weight 0, which all tie, or none
    winners[weightless] = (subsets.members[weightless] @ ballots) > 0
    return subsets.mean((winners @ values) / np.maximum(winners.sum(axis=1), 1))
