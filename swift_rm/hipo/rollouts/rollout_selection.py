"""Which of a question's rollouts to train on: those whose rewards differ the most."""

from __future__ import annotations

import math
from collections.abc import Sequence

from swift_rm.hipo.response.template import Mode

EQUAL = 1e-12  # variances closer than this are the same one, rounded


def informative(rewards: Sequence[float], keep: int) -> list[int]:
    """Return the indices, ascending, of the ``keep`` rewards with the largest variance: some of the highest, the others lowest.

    Of equal rewards the earlier are taken; of sets with the same variance the one that comes first. Rewards that are NaN
    or infinite are taken only where the others are too few. O(M log M) and exact, since the best set of a size always is a
    number of the highest and the rest of the lowest (PODS, arXiv 2504.13818). Raises ValueError unless 1 <= keep <= M.
    """
    if not 1 <= keep <= len(rewards):
        raise ValueError(f"keep must be from 1 to the {len(rewards)} rewards there are, got {keep}")
    finite = [i for i, reward in enumerate(rewards) if math.isfinite(reward)]
    strange = [i for i, reward in enumerate(rewards) if not math.isfinite(reward)]
    size = min(keep, len(finite))
    values = sorted(rewards[i] for i in finite)
    spreads = [_variance(values[:low] + values[len(values) - (size - low) :]) for low in range(size + 1)]
    best = max(spreads, default=0.0)
    tied = [low for low, spread in enumerate(spreads) if spread >= best - EQUAL]
    sets = [_earliest(rewards, finite, values[:low] + values[len(values) - (size - low) :]) for low in tied]
    return sorted([*min(sets, default=[]), *strange[: keep - size]])


def keep_informative(
    rewards: Sequence[float], keep: int, modes: Sequence[Mode | None] | None = None, whole: Sequence[bool] | None = None
) -> list[int]:
    """Return which ``keep`` of a question's candidates to train on: the most informative, but of each mode at least one.

    Candidates that are not ``whole`` (dropped on their way, or with broken states) are taken only where whole ones are too
    few. A mode that some whole candidate chose is not lost, unless ``keep`` is 1: HiPO compares the modes' mean rewards,
    and a group of one mode teaches nothing about the choice. Where :func:`informative` leaves one out, the exchange of one
    candidate for one of that mode that costs the least variance is made.
    """
    able = [i for i in range(len(rewards)) if whole is None or whole[i]]
    if len(able) <= keep:
        others = [i for i in range(len(rewards)) if i not in set(able)]
        return sorted([*able, *others[: keep - len(able)]])
    chosen = [able[i] for i in informative([rewards[i] for i in able], keep)]
    if modes is None or keep < 2:
        return chosen
    for mode in ("on", "off"):
        if any(modes[i] == mode for i in chosen) or not any(modes[i] == mode for i in able):
            continue
        counts = [sum(modes[j] == modes[i] for j in chosen) for i in chosen]
        free = [i for i, count in zip(chosen, counts, strict=True) if count > 1 or modes[i] is None]
        swaps = [sorted([*(j for j in chosen if j != out), new]) for new in able if modes[new] == mode for out in free]
        chosen = max(swaps, key=lambda rows: _variance([rewards[i] for i in rows]))
    return chosen


def _variance(values: Sequence[float]) -> float:
    """Return the sum of squares about the mean, of the values that are finite."""
    finite = [value for value in values if math.isfinite(value)]
    mean = sum(finite) / max(1, len(finite))
    return sum((value - mean) ** 2 for value in finite)


def _earliest(rewards: Sequence[float], places: Sequence[int], values: Sequence[float]) -> list[int]:
    """Return the first of these places, ascending, at which these values stand."""
    wanted = list(values)
    found = []
    for place in places:
        if rewards[place] in wanted:
            wanted.remove(rewards[place])
            found.append(place)
    return found
