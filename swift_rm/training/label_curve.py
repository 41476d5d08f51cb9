"""How many labelled questions a head needs: the same head, trained on fewer and fewer of them.

The questions that the final head holds out judge every point, and take no part in any point's training: each head stops
early on, and is chosen by, a share of the questions that were drawn for it. So a point says what so many labelled questions
give, all in all. Each seed draws the questions (those of a smaller number are among those of a greater), what is held out
of them, and the first weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm.auto import tqdm

from swift_rm.evaluation.auroc import within_question_auroc
from swift_rm.evaluation.intervals import SeedResamples
from swift_rm.evaluation.rule_curves import election
from swift_rm.evaluation.subset_accuracy import Count, Subsets, best_of_curves, fixed_weights, sums, vote_curve
from swift_rm.features.read_states import Features, FeatureSource
from swift_rm.features.row_selection import Reading
from swift_rm.records.rollouts import MIN_QUESTIONS
from swift_rm.reward.head import combine
from swift_rm.selection.rules import reward_weights, shrunk_means
from swift_rm.training.fit import train_bank
from swift_rm.training.fit_settings import FitSettings
from swift_rm.training.head_grid import HeadPlan
from swift_rm.training.head_validation import predict
from swift_rm.training.question_split import mixed_questions, responses_of, split_questions

Floats = npt.NDArray[np.float64]
VOTES: dict[str, Count] = {"vote": sums, "shrunk": shrunk_means}  # what an answer has from its weights, sigmoid(reward)


POINTS, SEEDS = 5, 3
SHOWN = ("auroc", "best", "shrunk")


@dataclass(frozen=True)
class SomeQuestions:
    """Some questions of a feature source, whose states stay where they are: what is read of a shard, training picks by number."""

    whole: FeatureSource
    labels: Tensor
    question: Tensor

    @classmethod
    def of(cls, source: FeatureSource, questions: Tensor) -> SomeQuestions:
        """Choose questions by their numbers."""
        responses = responses_of(source.question, questions)
        return cls(source, source.labels[responses], source.question[responses])

    def __len__(self) -> int:
        """Return the number of the source's shards."""
        return len(self.whole)

    def shard(self, index: int) -> Features:
        """Return a shard with all of its questions."""
        return self.whole.shard(index)


def draw_questions(questions: Tensor, count: int, seed: int) -> Tensor:
    """Return ``count`` of the question numbers; those that a seed draws are among those it draws of a greater count."""
    return questions[torch.randperm(len(questions), generator=torch.Generator().manual_seed(seed))[:count]]


def label_counts(source: FeatureSource, plan: HeadPlan, seeds: int = SEEDS) -> list[int]:
    """Return the numbers of questions to train on, ascending: all that train the final head, half as many, and so on.

    A number of which some seed draws too few questions with right and wrong responses to train on is left out. Raises
    ValueError if fewer than two are left.
    """
    settings = plan.settings
    train, _ = split_questions(source, settings.validation, settings.seed)
    mixed = mixed_questions(source)
    needed = max(MIN_QUESTIONS, math.ceil(1 / (1 - settings.validation)))  # so that one is left when the share is held out
    orders = [draw_questions(train, len(train), seed) for seed in _seeds(settings, seeds)]
    least = max(int((mixed[order].cumsum(0) < needed).sum()) + 1 for order in orders)
    counts = [len(train) >> halvings for halvings in reversed(range(POINTS)) if len(train) >> halvings >= least]
    if len(counts) < 2:
        raise ValueError(
            f"a label curve trains on half of the {len(train)} training questions too, of which at least {needed} must have "
            f"both right and wrong responses, but {int(mixed[train].sum())} in all have"
        )
    return counts


def label_curve(
    source: FeatureSource,
    plan: HeadPlan,
    layers: Sequence[int],
    views: Sequence[Reading],
    answers: Sequence[str | None] | None = None,
    *,
    seeds: int = SEEDS,
    bootstrap: int = 2000,
    progress: bool = False,
) -> dict[str, Any]:
    """Train ``plan`` on fewer questions than ``fit_bank`` did, and judge all on those that it held out; JSON-ready.

    ``label_efficiency`` has a row for each number of questions: AUROC within questions, and the accuracy of the best of a
    question's responses and, if there are ``answers`` [B], of the shrunk vote, with 95 % intervals over questions and seeds.
    ``n`` is the number of responses to each held-out question, None if it varies. Raises ValueError as ``label_counts`` does.
    """
    counts = label_counts(source, plan, seeds)
    train, held_out = split_questions(source, plan.settings.validation, plan.settings.seed)
    judges = _Judges(source, held_out, answers)
    resamples = SeedResamples(seeds, len(held_out), bootstrap=bootstrap)
    rows = []
    with tqdm(total=len(counts) * seeds, desc="label curve", unit="head", disable=not progress, delay=1) as bar:
        for count in counts:
            by_seed = []
            for seed in _seeds(plan.settings, seeds):
                some = SomeQuestions.of(source, draw_questions(train, count, seed))
                one = replace(plan, settings=replace(plan.settings, seed=seed))
                bank, _, _ = train_bank(some, [one], layers, views)
                bank.restore()
                rewards, _, _ = predict(bank, source, held_out)
                by_seed.append(judges.figures(combine(rewards, plan.settings.pessimism)))
                bar.update()
            stacked = {name: np.stack([figures[name] for figures in by_seed]) for name in SHOWN if name in by_seed[0]}
            intervals = {name: resamples.interval(resamples.figures(values)) for name, values in stacked.items()}
            rows.append({"questions": count, **{name: interval.to_dict() for name, interval in intervals.items()}})
    return {"label_efficiency": rows, "validation_questions": len(held_out), "seeds": seeds, "n": judges.n}


class _Judges:
    """The held-out questions: their responses' places among the rewards, labels and answers."""

    def __init__(self, source: FeatureSource, held_out: Tensor, answers: Sequence[str | None] | None) -> None:
        responses = responses_of(source.question, held_out)
        question = source.question[responses]
        self._places = [(question == number).nonzero().flatten().numpy() for number in held_out]
        labels = source.labels[responses].double().numpy()
        self._labels = [labels[place] for place in self._places]
        self._answers: list[list[str | None]] | None = None
        if answers is not None and any(answer is not None for answer in answers):
            given = [answers[i] for i in responses.tolist()]
            self._answers = [[given[i] for i in place] for place in self._places]
        sizes = {len(place) for place in self._places}
        self.n = sizes.pop() if len(sizes) == 1 else None

    def figures(self, rewards: Tensor) -> dict[str, Floats]:
        """Return what the rewards [B] of their responses are worth on each question, [Q] by name."""
        values = rewards.double().numpy()
        return question_figures([values[place] for place in self._places], self._labels, self._answers)


def _seeds(settings: FitSettings, seeds: int) -> list[int]:
    """Return seeds of which no two share a head's first weights: an ensemble takes as many as it has heads."""
    return [settings.seed + settings.ensemble * i for i in range(seeds)]


def question_figures(
    rewards: Sequence[Floats] | Floats, labels: Sequence[Floats] | Floats, answers: Sequence[Sequence[str | None]] | None = None
) -> dict[str, Floats]:
    """Return the figures "auroc", "best" and, with ``answers``, "vote" and "shrunk" of each question, [Q] each.

    ``rewards`` and ``labels`` have an array a question, as long as it has responses. AUROC is NaN where all labels are
    equal; the others are expected accuracies, ties being shared.
    """
    best = [best_of_curves(one[None], right[None])[0, -1] for one, right in zip(rewards, labels, strict=True)]
    found = {"auroc": within_question_auroc(rewards, labels), "best": np.array(best)}
    if answers is not None:
        cases = list(zip(rewards, labels, answers, strict=True))
        found |= {name: np.array([_elected(*case, count) for case in cases]) for name, count in VOTES.items()}
    return found


def _elected(rewards: Floats, labels: Floats, answers: Sequence[str | None], count: Count) -> float:
    everyone = Subsets(len(rewards), 1, np.random.default_rng(0), [len(rewards)])  # the only subset of that size
    codes, values = election(answers, labels)
    return float(vote_curve(fixed_weights, reward_weights(rewards), codes, values, everyone, count)[0])
