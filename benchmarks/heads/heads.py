"""The table of heads: variants of the 2D + 2 head, ensembles of it, and its rivals, with intervals over questions and seeds.

For each model and difficulty of the homework world, and each seed: the seed draws which questions of a pool are trained on,
the split and the first weights; one bank holds all heads, the rivals see the same questions and the same split. All are
judged by the same test questions: AUROC within questions, the best of 16, and the votes that rewards weigh. Differences are
to the default head, paired by question and seed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.heads.head_table import Measured, Setting, cells, table, verdict
from benchmarks.heads.head_variants import ENSEMBLE, PESSIMISTIC, VARIANTS, VIEWS, bank_rewards, head_plans
from benchmarks.heads.question_figures import TestQuestions, stacked
from benchmarks.heads.rival_rows import compared, rival_rows
from benchmarks.heads.rivals import EncoderSettings
from benchmarks.heads.worlds import CANDIDATES, MODELS, Asked, Sampled, arguments, draw_questions, open_cache, sampled
from benchmarks.recorder import finish
from benchmarks.text_table import Table
from swift_rm.evaluation.intervals import SeedResamples
from swift_rm.training.fit import fit_bank
from swift_rm.training.fit_settings import FitSettings
from swift_rm.training.question_split import split_questions

DIFFICULTIES = ("easy", "hard")


@dataclass(frozen=True)
class Size:
    """How much is sampled and trained: each seed draws ``train`` questions of ``pool``, 8 responses each."""

    pool: int
    train: int
    test: int
    seeds: int
    settings: FitSettings
    encoder: EncoderSettings
    bootstrap: int


FULL = Size(440, 320, 200, 5, FitSettings(), EncoderSettings(epochs=8, patience=2), 2000)
QUICK = Size(36, 32, 8, 2, FitSettings(epochs=2), EncoderSettings(model=16, hidden=32, heads=2, epochs=1), 100)


def main() -> None:
    """Sample, train, judge and compare; print or write the table."""
    every = compared(1, FULL.encoder)
    args = arguments(__doc__, [*VARIANTS, PESSIMISTIC, *(rival.name for rival, _ in every)])
    size, models = (QUICK, MODELS[:1]) if args.quick else (FULL, MODELS)
    start = time.perf_counter()
    with open_cache(args.cache) as folder:
        pairs = [(model, difficulty) for model in models for difficulty in DIFFICULTIES]
        settings = [
            measure(model, difficulty, size, folder, number, args.only) for number, (model, difficulty) in enumerate(pairs)
        ]
    rows = table(settings, [rival.name for rival, _ in every], args.only[0])
    result = {
        "table": Table(rows, cells(rows)),
        **verdict(rows, args.only[0]),
        "settings": {setting.name: setting.facts for setting in settings},
        "seeds": size.seeds, "pool": size.pool, "train_questions": size.train, "train_n": 8, "test_questions": size.test,
        "test_n": CANDIDATES, "fit": asdict(size.settings), "step_encoder": asdict(size.encoder),
        "intervals": "bootstrap over test questions and seeds; of pooled figures each setting counts the same",
        "seconds": "to train: of a head, its share of the time of its bank; the median over seeds",
        "total_seconds": round(time.perf_counter() - start, 1),
    }  # fmt: skip
    finish("heads", args, result)


def measure(model: str, difficulty: str, size: Size, folder: str | Path, number: int, only: Sequence[str]) -> Setting:
    """Train and judge everything of one model and difficulty."""
    train = sampled(Asked(model, "homework", difficulty, "reward", size.pool, 8, 7), folder, VIEWS)
    test = sampled(Asked(model, "homework", difficulty, "test", size.test, CANDIDATES, 11), folder, VIEWS)
    shared = {one.question_id for one in train.rollouts} & {one.question_id for one in test.rollouts}
    if shared:
        raise RuntimeError(f"{len(shared)} questions are in both training and test")
    questions = TestQuestions(test.rollouts)
    runs = [run for seed in range(size.seeds) for run in trained(train, test, questions, size, seed, only)]
    heads = {
        name: Measured(
            stacked([run["figures"] for run in runs if run["name"] == name]),
            max(run["parameters"] for run in runs if run["name"] == name),
            float(np.median([run["seconds"] for run in runs if run["name"] == name])),
        )
        for name in dict.fromkeys(run["name"] for run in runs)
    }
    resamples = SeedResamples(
        size.seeds, size.test, bootstrap=size.bootstrap, question_seed=DIFFICULTIES.index(difficulty), seed_seed=number
    )
    mixed = (questions.labels.min(1) < questions.labels.max(1)).mean()
    facts = {
        "layers": len(test.config.layers), "hidden_size": test.config.hidden_size,
        "pass_rate": round(float(questions.labels.mean()), 4), "mixed_share": round(float(mixed), 4),
    }  # fmt: skip
    return Setting(f"{model} {difficulty}", heads, resamples, facts)


def trained(
    train: Sampled, test: Sampled, questions: TestQuestions, size: Size, seed: int, only: Sequence[str]
) -> list[dict[str, Any]]:
    """Train all heads and rivals of one seed; return for each its name, figures [Q] by name, parameters and seconds."""
    drawn = draw_questions(train.features, size.train, seed)
    layers = test.config.layers
    settings = replace(size.settings, seed=100 * seed)  # so that no two ensembles share a head's first weights
    plans = head_plans(test.config, settings, [name for name in VARIANTS if name in only])
    start = time.perf_counter()
    judged = fit_bank(drawn, plans, layers, VIEWS)
    each = (time.perf_counter() - start) / sum(plan.settings.ensemble for plan in plans)
    facts = {one.plan.name: (int(one.row["parameters"]), each * one.plan.settings.ensemble) for one in judged}
    facts |= {PESSIMISTIC: facts[ENSEMBLE]} if ENSEMBLE in facts else {}
    runs = [(name, rewards, *facts[name]) for name, rewards in bank_rewards(judged, test.features, layers).items()]
    rows, test_rows = rival_rows(drawn), rival_rows(test.features)
    parts = split_questions(drawn, settings.validation, settings.seed)
    for rival, boundary in compared(test.config.hidden_size, size.encoder):
        if rival.name not in only:
            continue
        fitted, held_out = (rows[boundary].of_questions(part) for part in parts)
        start = time.perf_counter()
        rival.fit(fitted, held_out, seed)
        took = time.perf_counter() - start
        runs.append((rival.name, rival.rewards(test_rows[boundary]), rival.parameters, took))
    return [
        {"name": name, "figures": questions.figures(rewards), "parameters": parameters, "seconds": took}
        for name, rewards, parameters, took in runs
    ]


if __name__ == "__main__":
    main()
