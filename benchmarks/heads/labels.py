"""How many labelled questions a head needs, and whether one trained here is worth anything there.

Label efficiency: AUROC within questions and the best of 16 against the number of training questions, beside what needs no
training. Transfer: a head trained on one difficulty or world, judged on another; beside it the one trained where it is
judged. Each seed draws the training questions, the split and the first weights. The head is the default one.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.heads.question_figures import FIGURES, Floats, TestQuestions, stacked
from benchmarks.heads.worlds import CANDIDATES, MODELS, TWO_WORLDS, Asked, Sampled, arguments, draw_questions, open_cache, sampled
from benchmarks.recorder import finish
from benchmarks.text_table import Table, shown
from swift_rm.evaluation.intervals import SeedResamples
from swift_rm.training.fit import fit_features
from swift_rm.training.fit_settings import FitSettings

SHOWN = ("auroc", "best_of_16", "vote_of_16")
Row = dict[str, Any]

DIFFICULTIES = {"easy": ("homework", "easy"), "hard": ("homework", "hard")}  # where transfer goes: world and difficulty
WORLDS = {"homework": ("homework", "mixed"), "rewriting": ("rewriting", "mixed")}


@dataclass(frozen=True)
class Size:
    """How much is sampled, 8 responses to each training question, and trained: ``counts`` of questions of a ``pool``."""

    counts: tuple[int, ...]
    transfer_pool: int
    transfer_train: int
    test: int
    seeds: int
    transfer_seeds: int
    settings: Mapping[str, Any]
    bootstrap: int

    @property
    def pool(self) -> int:
        """Return how many training questions there are at most."""
        return self.counts[-1]


FULL = Size((25, 50, 100, 200, 400, 800), 440, 320, 200, 5, 3, {}, 2000)  # pools of transfer: those of heads.py
QUICK = Size((12, 24), 36, 32, 8, 2, 2, {"epochs": 2}, 100)


def main() -> None:
    """Sample, train and judge; print or write the curves and the matrix."""
    args = arguments(__doc__)
    size, models = (QUICK, MODELS[:1]) if args.quick else (FULL, MODELS)
    start = time.perf_counter()
    with open_cache(args.cache) as folder:
        points, flat = both(label_efficiency(model, size, folder) for model in models)
        transfers, also = both(transfer(model, DIFFICULTIES, size, folder) for model in models)
        if TWO_WORLDS in models:
            transfers, also = both([(transfers, also), transfer(TWO_WORLDS, WORLDS, size, folder)])
    result = {
        "label_efficiency": Table(points, cells(points, ("model", "questions"))),
        "transfer": Table(transfers, cells(transfers, ("model", "train", "test"), "difference")),
        "without_training": Table(flat + also, cells(flat + also, ("model", "test", "rule"))),
        "world": "homework, mixed", "train_n": 8, "test_questions": size.test, "test_n": CANDIDATES, "seeds": size.seeds,
        "transfer_questions": size.transfer_train, "transfer_seeds": size.transfer_seeds, "fit": dict(size.settings),
        "intervals": "bootstrap over test questions and seeds; a difference is to the head trained where it is judged",
        "total_seconds": round(time.perf_counter() - start, 1),
    }  # fmt: skip
    finish("labels", args, result)


def label_efficiency(model: str, size: Size, folder: str | Path) -> tuple[list[Row], list[Row]]:
    """Return the curve of one model on homework of mixed difficulty, and the rows of what needs no training."""
    train = sampled(Asked(model, "homework", "mixed", "reward", size.pool, 8, 7), folder)
    test = sampled(Asked(model, "homework", "mixed", "test", size.test, CANDIDATES, 11), folder)
    questions = TestQuestions(test.rollouts)
    resamples = SeedResamples(size.seeds, size.test, bootstrap=size.bootstrap)
    points = []
    for count in size.counts:
        by_seed = [trained(train, [test], [questions], count, seed, size)[0] for seed in range(size.seeds)]
        points.append({"model": model, "questions": count, **intervals(resamples, stacked(by_seed))})
    return points, without_training(model, "homework, mixed", questions, size)


def transfer(model: str, places: Mapping[str, tuple[str, str]], size: Size, folder: str | Path) -> tuple[list[Row], list[Row]]:
    """Train in each place, judge in each; return a row for each pair, and the rows of what needs no training.

    A place is a world and its difficulty.
    """
    asked = {name: Asked(model, *place, "test", size.test, CANDIDATES, 11) for name, place in places.items()}
    tests = [sampled(one, folder) for one in asked.values()]
    questions = [TestQuestions(test.rollouts) for test in tests]
    found: dict[tuple[str, str], dict[str, Floats]] = {}
    for name, place in places.items():
        train = sampled(Asked(model, *place, "reward", size.transfer_pool, 8, 7), folder)
        by_seed = [trained(train, tests, questions, size.transfer_train, seed, size) for seed in range(size.transfer_seeds)]
        found |= {(name, judged_at): stacked([one[i] for one in by_seed]) for i, judged_at in enumerate(places)}
    rows, flat = [], []
    for number, judged_at in enumerate(places):
        resamples = SeedResamples(size.transfer_seeds, size.test, bootstrap=size.bootstrap, question_seed=number)
        home = found[judged_at, judged_at]
        for name in places:
            figures = found[name, judged_at]
            row = {"model": model, "train": name, "test": judged_at, **intervals(resamples, figures)}
            lost = {key: figures[key] - home[key] for key in FIGURES}
            rows.append({**row, "difference": intervals(resamples, lost)} if name != judged_at else row)
        flat += without_training(model, judged_at, questions[number], size)
    return rows, flat


def trained(
    train: Sampled, tests: Sequence[Sampled], questions: Sequence[TestQuestions], count: int, seed: int, size: Size
) -> list[dict[str, Floats]]:
    """Train one head on ``count`` questions that the seed draws; return its figures [Q] on each test, by name."""
    rm = fit_features(draw_questions(train.features, count, seed), train.config, FitSettings(seed=seed, **size.settings))
    with torch.no_grad():
        rewards = [rm(test.features.states, test.features.offsets) for test in tests]
    return [one.figures(values) for one, values in zip(questions, rewards, strict=True)]


def intervals(resamples: SeedResamples, figures: Mapping[str, Floats]) -> Row:
    """Return the intervals of figures [S, Q], JSON-ready."""
    return {name: resamples.interval(resamples.figures(values)).to_dict() for name, values in figures.items()}


def without_training(model: str, test: str, questions: TestQuestions, size: Size) -> list[Row]:
    """Return a row for each rule that needs no training."""
    alone = SeedResamples(1, size.test, bootstrap=size.bootstrap)
    return [
        {"model": model, "test": test, "rule": name, **intervals(alone, stacked([figures]))}
        for name, figures in questions.without_reward().items()
    ]


def both(pairs: Iterable[tuple[list[Row], list[Row]]]) -> tuple[list[Row], list[Row]]:
    """Return the first lists of the pairs in one, and the second."""
    first, second = zip(*pairs, strict=True)
    return [row for rows in first for row in rows], [row for rows in second for row in rows]


def cells(rows: Sequence[Row], names: Sequence[str], difference: str | None = None) -> list[list[str]]:
    """Return rows as texts: what ``names`` them, the figures ``SHOWN``, and the same of their ``difference``."""
    lines = [[*names, *SHOWN, *(f"{difference}: {name}" for name in SHOWN if difference)]]
    for row in rows:
        own = [shown(row[name]) if name in row else "-" for name in SHOWN]
        lost = [shown(row[difference][name], signed=True) if difference in row else "-" for name in SHOWN if difference]
        lines.append([*(str(row[name]) for name in names), *own, *lost])
    return lines


if __name__ == "__main__":
    main()
