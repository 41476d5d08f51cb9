"""The figures of a run of the paper's protocol, and its table: rows reward models, columns Best-of-k, the published beside."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from swift_protocol import PUBLISHED, PUBLISHED_KS

from swift_rm.evaluation.auroc import within_question_auroc
from swift_rm.evaluation.intervals import Interval, Resamples
from swift_rm.evaluation.rule_curves import VOTE_SUBSETS, election
from swift_rm.evaluation.subset_accuracy import Subsets, best_of_curves, fixed_weights, majority_curve, vote_curve
from swift_rm.records.rollouts import Rollout, group_by_question
from swift_rm.selection import reward_weights, shrunk_means
from swift_rm.selection.baselines import mean_logprob

Floats = npt.NDArray[np.float64]

FIRST_K = "SWIFT, published recipe, the first k (as published)"
NAMES = {"published": "SWIFT, published recipe", "ours": "swift-rm, our recipe"}
VOTES = {"published": "SWIFT, published recipe, shrunk vote", "ours": "swift-rm, our recipe, shrunk vote"}
SINGLE, MAJORITY, LOGPROB, ORACLE = "a single response", "majority vote", "mean log-probability", "oracle"


def measure(test: Sequence[Rollout], rewards: Mapping[str, Floats], ks: Sequence[int]) -> dict[str, Any]:
    """Return the figures, JSON-ready, of graded ``test`` rollouts and each recipe's rewards, [seeds, responses].

    Every cell is the exact expectation over all subsets of k of a question's responses (a shrunk vote: the average over 200
    of them where there are more), the mean over the seeds of the head, with a 95 % interval over questions; but for the row
    "the first k", which does as the paper did. A response without a label counts as not right.
    """
    groups = list(group_by_question(test).values())
    shape, index = (len(groups), len(groups[0])), [k - 1 for k in ks]
    labels = np.array([float(one.label or 0) for group in groups for one in group]).reshape(shape)
    answers = [[one.answer for one in group] for group in groups]
    elections = [election(said, row) for said, row in zip(answers, labels, strict=True)]
    rng = np.random.default_rng(0)
    subsets = Subsets(shape[1], VOTE_SUBSETS, rng, ks)
    orders = rng.permuted(np.tile(np.arange(shape[1]), (len(groups), 1)), axis=1)  # for the reason see Subsets

    def first_k(scores: Floats) -> Floats:
        return np.stack([best_of_curves(scores[:, :k], labels[:, :k])[:, -1] for k in ks], axis=1)

    def shrunk(scores: Floats) -> Floats:
        cases = zip(scores, elections, orders, strict=True)
        return np.stack(
            [vote_curve(fixed_weights, reward_weights(s)[o], c[o], v, subsets, shrunk_means) for s, (c, v), o in cases]
        )

    logprobs = np.array([mean_logprob(one) for one in test]).reshape(shape)
    by_seed = {name: [one.reshape(shape) for one in found] for name, found in rewards.items()}
    best = {name: np.stack([best_of_curves(one, labels)[:, index] for one in found]) for name, found in by_seed.items()}
    rows = {
        SINGLE: np.repeat(labels.mean(axis=1, keepdims=True), len(ks), axis=1),
        MAJORITY: np.stack([majority_curve(*one)[index] for one in elections]),
        LOGPROB: best_of_curves(logprobs, labels)[:, index],
        FIRST_K: np.mean([first_k(one) for one in by_seed["published"]], axis=0),
        **{NAMES[name]: found.mean(axis=0) for name, found in best.items()},
        **{VOTES[name]: np.mean([shrunk(one) for one in found], axis=0) for name, found in by_seed.items()},
        ORACLE: best_of_curves(labels, labels)[:, index],
    }
    resamples = Resamples(len(groups))
    mixed = (labels.min(axis=1) < labels.max(axis=1)).astype(np.float64)
    paired = [(NAMES["published"], MAJORITY), (NAMES["ours"], MAJORITY), (VOTES["ours"], MAJORITY)]
    paired += [(NAMES["ours"], NAMES["published"]), (NAMES["ours"], LOGPROB)]

    def cells(values: Floats) -> list[dict[str, Any]]:
        found = resamples.intervals(resamples.ratio(values))
        return [{"k": k, **one.to_dict()} for k, one in zip(ks, found, strict=True)]

    def auroc(found: Sequence[Floats]) -> Interval:
        each = np.mean([np.nan_to_num(within_question_auroc(one, labels)) for one in found], axis=0)
        return resamples.interval(resamples.ratio(each, mixed))

    return {
        "ks": list(ks),
        "rows": {name: cells(values) for name, values in rows.items()},
        "seeds": {NAMES[name]: found.mean(axis=1).tolist() for name, found in best.items()},
        "paired": {f"{a} - {b}": cells(rows[a] - rows[b]) for a, b in paired},
        "auroc_within": {
            **{NAMES[name]: auroc(found).to_dict() for name, found in by_seed.items()},
            LOGPROB: auroc([logprobs]).to_dict(),
        },
        "test": {
            "questions": shape[0], "n": shape[1], "mixed_questions": int(mixed.sum()), "right_share": float(labels.mean()),
            "without_reward": int(np.isnan(np.concatenate(list(rewards.values()))).any(axis=0).sum()),
            "ungraded": sum(one.label is None for one in test),
            "unparsable": sum(one.answer is None for one in test),
            "cut_at_length": sum(one.finish_reason == "length" for one in test),
        },
    }  # fmt: skip


def write_table(results: Mapping[str, Any]) -> str:
    """Return the Markdown of a run's results: facts, the table, differences, seeds, and the published figures."""
    ks, model = results["ks"], results["published_model"]
    columns = [f"Best-of-{k}" for k in ks]
    rows = [[name, *map(_percent, found)] for name, found in results["rows"].items()]
    if model is not None:
        rows += [[f"published: {name}", *(_published(name, model, k) for k in ks)] for name in PUBLISHED]
    asked = f"{results['dataset']} from {' and '.join(results['data'])}" if results["data"] else results["dataset"]
    facts = [f"Language model {results['model']}, questions: {asked}, prompt: {json.dumps(results['prompt'])}."]
    facts += [f"{what.capitalize()}: {_said(results[what])}." for what in ("protocol", "train", "test")]
    facts += [f"{one}." for one in (results["left_out"],) if one]
    facts += (
        ["**A smoke run: its sizes are too small for its figures to say anything.**"] if results["dataset"] == "homework" else []
    )
    facts += [f"**Not as published: {'; '.join(results['deviations'])}.**"] if results["deviations"] else []
    seeds = f"{results['seeds_of_head']} seed{'s' * (results['seeds_of_head'] > 1)}"
    facts.append(
        "Accuracy in % with a 95 % interval over questions, exact over all subsets of k responses, the mean of "
        f'{seeds} of the head. The row "the first k" does as the paper did.'
    )
    facts.append(
        "Training, validation and test are split by question. Both recipes keep the epoch with the best AUROC within "
        "validation questions, where the paper stopped by the loss and kept the last."
    )
    where = (
        f'The rows "published" above are of this language model, {model}, by the first k responses: compare them with that row. '
        "Which 500 questions of MATH the paper asked is not known to us; these are MATH-500 unless --data gave others."
        if model is not None
        else f"**Published on other language models or questions than this run's ({results['model']}, {results['dataset']}): "
        "they are here for the shape of the table and are not to be compared with the rows above.**"
    )
    models = list(next(iter(PUBLISHED.values())))
    published = [
        [name, *("/".join(f" {one:.1f} " for one in found[m]).strip() for m in models)] for name, found in PUBLISHED.items()
    ]
    ranges = [
        [name, *(f"{100 * min(column):.1f} to {100 * max(column):.1f}" for column in zip(*found, strict=True))]
        for name, found in results["seeds"].items()
    ]
    aurocs = [
        [name, f"{one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"]
        for name, one in results["auroc_within"].items()
        if one["value"] is not None
    ]
    parts = [
        "# The protocol of SWIFT (arXiv 2505.12225)",
        "\n".join(f"- {fact}" for fact in facts),
        _table(["reward model", *columns], rows),
        "## Differences (points)",
        _table(["", *columns], [[name, *map(_percent, found)] for name, found in results["paired"].items()]),
        "## Seeds of the head, lowest to highest",
        _table(["reward model", *columns], ranges),
        "## AUROC within test questions",
        _table(["score", "AUROC"], aurocs),
        f"## Published figures (MATH, 500 questions, Best-of-{'/'.join(map(str, PUBLISHED_KS))})",
        where,
        _table(["reward model", *models], published),
    ]
    return "\n\n".join(parts) + "\n"


def _published(name: str, model: str, k: int) -> str:
    return f"{PUBLISHED[name][model][PUBLISHED_KS.index(k)]:.1f}" if k in PUBLISHED_KS else "-"


def _said(facts: Mapping[str, Any]) -> str:
    shown = {name.replace("_", " "): f"{fact:.4g}" if isinstance(fact, float) else str(fact) for name, fact in facts.items()}
    return ", ".join(f"{name} {fact}" for name, fact in shown.items())


def _percent(cell: Mapping[str, Any]) -> str:
    value, low, high = (round(100 * cell[name], 1) + 0.0 for name in ("value", "low", "high"))  # no -0.0
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
