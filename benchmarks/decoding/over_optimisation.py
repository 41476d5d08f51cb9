"""Which selection rule over-optimises: its accuracy with N = 1 ... 64 candidates, for several heads and their ensembles.

Best-of-N falls where the highest reward of many is an outlier. For every model, difficulty and reward this measures each
rule at every N on the same subsets, each doubling of N, and the default rule against the better of best-of and weighted
vote at that N, all with paired intervals over questions. "falls" counts doublings, and "below" values of N, whose interval
lies below 0 as a whole. The rewards: the embedded reward model where it is the model's, a head and an ensemble of five,
each trained with several seeds; an ensemble's is the mean, the mean minus a multiple of the spread, or the lowest. Heads
that were trained on few questions are counted apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.recorder import arguments, finish
from swift_rm import SwiftConfig, SwiftRewardModel, sample
from swift_rm.evaluation.intervals import Resamples
from swift_rm.evaluation.rule_curves import election
from swift_rm.evaluation.subset_accuracy import Count, Subsets, fixed_weights, sums, vote_curve
from swift_rm.features.read_states import extract_features
from swift_rm.models.load import ASSETS, TINY, TINY_2, TINY_REWARD, load_language_model
from swift_rm.records.rollouts import Rollout, group_by_question
from swift_rm.reward.identity import describe_base
from swift_rm.scoring.score import score_heads
from swift_rm.selection.rule_table import DEFAULT_RULE
from swift_rm.selection.rules import reward_weights, shrunk_means
from swift_rm.tasks.homework import HomeworkTask
from swift_rm.tokens.encoding import encode
from swift_rm.training.fit import fit_features
from swift_rm.training.fit_settings import FitSettings

Floats = npt.NDArray[np.float64]

MODELS = (TINY, TINY_2)
DIFFICULTIES = ("easy", "mixed", "hard")
HEADS = 5  # of an ensemble
PESSIMISM = (0.5, 1.0, 2.0)
FEW = "head of few questions"
KEPT = ("best", "best by length", "vote", DEFAULT_RULE)  # whose curves the result has


@dataclass(frozen=True)
class Size:
    """How much is sampled and trained: ``n`` a power of two, ``train`` questions of 8 responses, or only ``few`` of them."""

    questions: int
    n: int
    train: int
    few: int
    seeds: int
    subsets: int
    bootstrap: int


FULL = Size(questions=150, n=64, train=600, few=100, seeds=3, subsets=100, bootstrap=2000)
QUICK = Size(questions=12, n=8, train=30, few=15, seeds=1, subsets=20, bootstrap=100)


def main() -> None:
    """Sample, train, score and compare; print or write the figures."""
    args = arguments(__doc__)
    size = QUICK if args.quick else FULL
    models, difficulties = (MODELS[:1], DIFFICULTIES[1:2]) if args.quick else (MODELS, DIFFICULTIES)
    settings = [one for model in models for one in model_settings(model, difficulties, size)]
    tables = [(name, table) for one in settings for name, table in one["rewards"].items()]
    summary = summarise([table for name, table in tables if not name.startswith(FEW)])
    default = summary[DEFAULT_RULE]
    result = {
        "default": DEFAULT_RULE,
        "goal_met": default["falls"] == 0 and default["below"] == 0,
        "falls": default["falls"],
        "below_better_of_best_and_vote": default["below"],
        "comparisons": default["comparisons"],
        "rules": summary,
        "rules_few_questions": summarise([table for name, table in tables if name.startswith(FEW)]),
        "n": [2**power for power in range(size.n.bit_length())],
        "settings": [brief(one) for one in settings],
    }
    finish("over_optimisation", args, result)


def brief(setting: dict[str, Any]) -> dict[str, Any]:
    """Return a setting with the rules of ``KEPT`` alone, to four digits: the summary has them all."""

    def rounded(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: rounded(one) for key, one in value.items()}
        if isinstance(value, list):
            return [rounded(one) for one in value]
        return round(value, 4) if isinstance(value, float) else value

    kept = {name: {rule: table[rule] for rule in KEPT} for name, table in setting["rewards"].items()}
    brief_setting: dict[str, Any] = rounded({**setting, "rewards": kept})
    return brief_setting


def model_settings(name: str, difficulties: tuple[str, ...], size: Size) -> list[dict[str, Any]]:
    """Return the figures of one model at each difficulty; its heads are trained once, on questions of mixed difficulty."""
    model, tokenizer = load_language_model(name, progress=False)
    shape = model.config
    config = describe_base(
        SwiftConfig(shape.hidden_size, tuple(range(shape.num_hidden_layers + 1)), position="token"), model, tokenizer
    )
    task = HomeworkTask("reward")
    rollouts = sample(model, tokenizer, task.questions(size.train, 29), 8, grade=task.grade, batch_size=64, seed=29)
    features = extract_features(model, tokenizer, rollouts, config, batch_size=256)
    few = extract_features(model, tokenizer, rollouts[: 8 * size.few], config, batch_size=256)
    names, models = [], []
    for seed in range(size.seeds):
        for heads in (1, HEADS):
            names += [f"head, seed {seed}"] if heads == 1 else [f"ensemble, seed {seed}"] * heads
            models.append(fit_features(features, config, FitSettings(seed=seed, ensemble=heads)))
        names.append(f"{FEW}, seed {seed}")
        models.append(fit_features(few, config, FitSettings(seed=seed)))
    if name == TINY:
        names.append("embedded")
        models.append(SwiftRewardModel.from_pretrained(ASSETS / TINY_REWARD))
    together = SwiftRewardModel.ensemble(models)  # so that all heads are read off one pass
    return [setting(name, difficulty, model, tokenizer, together, names, size) for difficulty in difficulties]


def setting(
    name: str, difficulty: str, model: Any, tokenizer: Any, heads: SwiftRewardModel, names: list[str], size: Size
) -> dict[str, Any]:
    """Sample one difficulty's candidates, score them with all heads, and return what each rule makes of each reward."""
    task = HomeworkTask("test", difficulty)
    rollouts = sample(model, tokenizer, task.questions(size.questions, 23), size.n, grade=task.grade, batch_size=16, seed=23)
    prompts, responses = [r.prompt_ids for r in rollouts], [r.response_ids for r in rollouts]
    encoded = encode(model, tokenizer, prompts, responses, heads.config.region)
    scores = score_heads(model, heads, encoded, batch_size=256).T.reshape(len(names), size.questions, size.n).numpy()
    groups = list(group_by_question(rollouts).values())
    labels = np.array([[r.label for r in group] for group in groups], dtype=np.float64)
    lengths = np.array([[len(r.response_ids) for r in group] for group in groups], dtype=np.float64)
    resamples = Resamples(size.questions, bootstrap=size.bootstrap)
    rewards = {name: scores[[one == name for one in names]] for name in names}
    figures = {}
    for name_of, of_heads in rewards.items():
        for kind, values in combined(of_heads).items():
            curves = rule_curves(groups, labels, lengths, values.astype(np.float64), size)
            figures[name_of + kind] = {rule: judged(curves, rule, resamples) for rule in curves}
    where = {"model": name, "difficulty": difficulty, "questions": size.questions, "pass_rate": float(labels.mean())}
    return {**where, "rewards": figures}


def combined(heads: Floats) -> dict[str, Floats]:
    """Return the rewards [Q, N] that heads [M, Q, N] give together, by the name of the way."""
    if len(heads) == 1:
        return {"": heads[0]}
    mean, spread = heads.mean(axis=0), heads.std(axis=0, ddof=1)
    return {", mean": mean, **{f", mean - {k} std": mean - k * spread for k in PESSIMISM}, ", min": heads.min(axis=0)}


def rule_curves(groups: list[list[Rollout]], labels: Floats, lengths: Floats, rewards: Floats, size: Size) -> dict[str, Floats]:
    """Return each rule's expected accuracy on each question at N = 1, 2, 4, ..., [Q, sizes]; the same subsets for all."""
    rng = np.random.default_rng(0)
    subsets = Subsets(size.n, size.subsets, rng, [2**power for power in range(size.n.bit_length())])
    orders = rng.permuted(np.tile(np.arange(size.n), (len(groups), 1)), axis=1)
    elections = [election([r.answer for r in group], label) for group, label in zip(groups, labels, strict=True)]

    def vote(weights: Floats, count: Count = sums) -> Floats:
        cases = zip(weights, elections, orders, strict=True)
        return np.stack([vote_curve(fixed_weights, w[order], codes[order], v, subsets, count) for w, (codes, v), order in cases])

    def best(scores: Floats) -> Floats:
        """Elect single responses: not `best_of_curves`, which is exact and so would differ by the luck of the subsets."""
        own = np.arange(size.n)
        ranks = np.stack([np.unique(row, return_inverse=True)[1] + 1.0 for row in scores])
        cases = zip(ranks, labels, orders, strict=True)
        return np.stack([vote_curve(fixed_weights, w[order], own, label[order], subsets) for w, label, order in cases])

    probabilities = np.stack([reward_weights(row) for row in rewards])
    slope, offset = np.polyfit(lengths.ravel(), rewards.ravel(), 1)
    return {
        "best": best(rewards),
        "best by length": best(rewards - slope * lengths - offset),
        "majority": vote(np.ones_like(rewards)),
        "vote": vote(probabilities),
        "noisy-or": vote(np.logaddexp(0.0, rewards)),  # -log(1 - p): the answer that is least probably wrong
        "mean": vote(probabilities, lambda totals, counts: totals / np.maximum(counts, 1.0)),
        "shrunk": vote(probabilities, shrunk_means),
        "shrunk by half": vote(probabilities, half_shrunk),
    }


def half_shrunk(totals: Floats, counts: Floats) -> Floats:
    """Shrink half as much as the default rule."""
    return totals / np.maximum(counts + counts.sum(1, keepdims=True) ** 0.5, 1.0)  # 0 where nobody votes


def judged(curves: dict[str, Floats], rule: str, resamples: Resamples) -> dict[str, Any]:
    """Return a rule's curve, its gain with each doubling of N, and how it compares with the better of best-of and vote."""
    curve = curves[rule]
    ahead = curves["best"].mean(axis=0) >= curves["vote"].mean(axis=0)
    against = curve - np.where(ahead, curves["best"], curves["vote"])
    points, gains, better = (resamples.intervals(resamples.ratio(values)) for values in (curve, np.diff(curve, axis=1), against))
    return {
        "curve": [one.to_dict() for one in points],
        "gains": [one.to_dict() for one in gains],
        "against_better": [one.to_dict() for one in better],
        "falls": sum(one.high < 0 for one in gains),
        "below": sum(one.high < 0 for one in better),
    }


def summarise(tables: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return each rule's falls and shortfalls in all settings and rewards together, and its mean accuracy at the largest N."""
    return {
        rule: {
            "falls": sum(table[rule]["falls"] for table in tables),
            "below": sum(table[rule]["below"] for table in tables),
            "comparisons": len(tables) * len(tables[0][rule]["gains"]),
            "smallest_gain": min(one["value"] for table in tables for one in table[rule]["gains"]),
            "worst_against_better": min(one["value"] for table in tables for one in table[rule]["against_better"]),
            "accuracy_at_n": math.fsum(table[rule]["curve"][-1]["value"] for table in tables) / len(tables),
        }
        for rule in tables[0]
    }


if __name__ == "__main__":
    main()
