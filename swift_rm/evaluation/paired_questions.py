"""Put two files of rollouts side by side: the questions that both hold, and which of their responses are the same.

A question is an id with a prompt. Two language models may write one prompt in different tokens, so between files its text
or messages count; within a file the tokens tell apart what was asked in two ways, as everywhere. Where an API answered,
no tokens are known, and the texts tell.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from swift_rm.evaluation.evaluate import graded_groups
from swift_rm.records.rollouts import Rollout

Key = tuple[str, str, int]


@dataclass(frozen=True)
class Matched:
    """The questions in both files, in A's order: their names, and as many responses of each by A and by B.

    ``only_a`` and ``only_b`` count the questions of one file. ``shared`` of the ``len(names) * n`` responses of B are
    responses of A too, token by token, or by their text where no tokens are known.
    """

    names: Sequence[str]
    a: Sequence[Sequence[Rollout]]
    b: Sequence[Sequence[Rollout]]
    only_a: int
    only_b: int
    shared: int

    @property
    def n(self) -> int:
        """Return the number of responses a question."""
        return len(self.a[0])

    @property
    def same(self) -> bool:
        """Tell whether A and B have the same responses."""
        return self.shared == len(self.names) * self.n


def match(a: Sequence[Rollout], b: Sequence[Rollout], n: int | None = None, files: tuple[str, str] = ("A", "B")) -> Matched:
    """Match the graded rollouts of two files; ``a`` and ``b`` may be one and the same.

    Raises ValueError, with the names of the ``files``, for no shared question, missing labels, unequal numbers of
    responses, and labels of the same response that differ.
    """
    first = _questions(a)
    second = first if a is b else _questions(b)
    keys = [key for key in first if key in second]
    if not keys:
        raise ValueError(
            f"{files[0]} ({len(first)} questions) and {files[1]} ({len(second)}) have no question in common: "
            f"none has the same id and the same prompt in both"
        )
    names = _names(keys)
    groups_a = _graded(first, keys, names, n, files[0])
    groups_b = groups_a if a is b else _graded(second, keys, names, n, files[1])
    if len(groups_a[0]) != len(groups_b[0]):
        counts = len(groups_a[0]), len(groups_b[0])
        raise ValueError(
            f"{files[0]} has {counts[0]} responses a question and {files[1]} has {counts[1]}; "
            f"give -n {min(counts)} to compare the first {min(counts)} of each"
        )
    shared = sum(_shared(*pair) for pair in zip(groups_a, groups_b, strict=True))
    conflicts = sum(_conflicts(*pair) for pair in zip(groups_a, groups_b, strict=True))
    if conflicts:
        raise ValueError(
            f"{conflicts} of the responses in both {files[0]} and {files[1]} {'has' if conflicts == 1 else 'have'} another label "
            f"in each; grade both files alike, or accuracy means two things"
        )
    return Matched(names, groups_a, groups_b, len(first) - len(keys), len(second) - len(keys), shared)


def _questions(rollouts: Sequence[Rollout]) -> dict[Key, list[Rollout]]:
    questions: dict[Key, list[Rollout]] = {}
    asked: dict[tuple[str, str], list[list[int]]] = {}
    for rollout in rollouts:
        words = rollout.question_id, json.dumps(rollout.prompt, sort_keys=True)
        tokens = asked.setdefault(words, [])
        if rollout.prompt_ids not in tokens:
            tokens.append(rollout.prompt_ids)
        questions.setdefault((*words, tokens.index(rollout.prompt_ids)), []).append(rollout)
    return questions


def _names(keys: Sequence[Key]) -> list[str]:
    """Return the questions' ids; where several share one, the second is "id#2", as for `swift-rm evaluate`."""
    seen: Counter[str] = Counter()
    names = []
    for question_id, *_ in keys:
        seen[question_id] += 1
        names.append(f"{question_id}#{seen[question_id]}" if seen[question_id] > 1 else question_id)
    return names


def _graded(
    questions: dict[Key, list[Rollout]], keys: Sequence[Key], names: Sequence[str], n: int | None, file: str
) -> list[list[Rollout]]:
    named = [replace(rollout, question_id=name) for key, name in zip(keys, names, strict=True) for rollout in questions[key]]
    try:
        return graded_groups(named, n)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _said(rollout: Rollout) -> tuple[str, tuple[int, ...]]:
    return rollout.response, tuple(rollout.response_ids)


def _shared(a: Sequence[Rollout], b: Sequence[Rollout]) -> int:
    return (Counter(map(_said, a)) & Counter(map(_said, b))).total()


def _conflicts(a: Sequence[Rollout], b: Sequence[Rollout]) -> int:
    labels: dict[tuple[str, tuple[int, ...]], set[int | None]] = {}
    for rollout in a:
        labels.setdefault(_said(rollout), set()).add(rollout.label)
    return sum(rollout.label not in labels.get(_said(rollout), {rollout.label}) for rollout in b)
