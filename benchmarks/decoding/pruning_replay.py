"""What pruning and stopping early save on held-out homework, by replaying the package's rules on recorded candidates.

Every rule meets the same candidates, so that what it loses is a paired difference. Two signals that cost nothing stand
beside the rewards: the mean log-probability so far, and chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from swift_rm import SwiftRewardModel, best_of_n, sample
from swift_rm.decoding.candidate_budget import CandidatePlan, QuestionProgress
from swift_rm.decoding.pruning import Confidence, Halving, Prune
from swift_rm.evaluation.intervals import paired_difference
from swift_rm.models.load import ASSETS, TINY_PROGRESS
from swift_rm.records.rollouts import Rollout, group_by_question
from swift_rm.scoring.token_scoring import score_tokens
from swift_rm.tasks.homework import HomeworkTask

Floats = NDArray[np.float64]
GROUP = 64  # questions that are answered together: their candidates tell what another may bring
PRUNE = Halving(min_tokens=10, growth=2.0, keep=0.6)  # chosen on questions of the reward's split, not on these
STOP_AT, MIN_GAIN, WAVE = 0.9, 0.01, 2


@dataclass(frozen=True)
class Recorded:
    """One question's candidates: whether right [n], lengths [n], rewards [n], probabilities [n], signals by name [n, T].

    ``lag`` is how many tokens are chosen before a token's score is known: 1 where its own state is read.
    """

    right: NDArray[np.int64]
    length: NDArray[np.int64]
    reward: Floats
    probability: Floats
    signals: dict[str, Floats]
    lag: int


def homework_figures(model: Any, tokenizer: Any, rm: SwiftRewardModel, questions: int, n: int) -> dict[str, Any]:
    """Record candidates of held-out questions; return what each rule spends of their tokens, and loses."""
    guide = SwiftRewardModel.from_pretrained(ASSETS / TINY_PROGRESS).to(model.device)
    task = HomeworkTask("test")
    asked = list(task.questions(questions, seed=0))
    rollouts = sample(model, tokenizer, asked, n, grade=task.grade, batch_size=64)
    recorded = record(model, tokenizer, rm, guide, rollouts)
    tokens = sum(int(one.length.sum()) for one in recorded)
    rules: list[tuple[str, Prune]] = [("halving", PRUNE)]
    rules += [("halving", Halving(m, 2.0, keep)) for m in (10, 14, 20) for keep in (0.5, 0.6, 0.7, 0.8) if (m, keep) != (10, 0.6)]
    rules += [("confidence", Confidence(12, margin)) for margin in (1.0, 1.5, 2.0, 3.0, 4.0)]
    curve = [
        {"rule": name, **shown(rule), "signal": signal, **pruned(recorded, rule, signal)}
        for name, rule in rules
        for signal in ("progress", "reward", "logprob", "random")
        if name == "halving" or signal in ("progress", "reward")
    ]
    stops = [
        {"stop_at": p, "min_gain": gain, "wave": wave, **stopped(recorded, CandidatePlan(n, wave, p, None, gain))}
        for p in (0.7, 0.8, 0.85, 0.9, 0.95, 0.99)
        for gain in (0.0, MIN_GAIN)
        for wave in (1, WAVE, 4)
    ]
    budgets = [
        {"share_of_tokens": share, **stopped(recorded, CandidatePlan(n, WAVE, None, round(share * tokens)), len(recorded))}
        for share in (0.2, 0.3, 0.4, 0.5, 0.7)
    ]
    main_prune = curve[0]
    main_stop = next(s for s in stops if (s["stop_at"], s["min_gain"], s["wave"]) == (STOP_AT, MIN_GAIN, WAVE))
    return {
        "questions": questions, "candidates": n,
        "best_of_n_accuracy": round(100 * float(np.mean([base(one) for one in recorded])), 2),
        "prune_rule": {"rule": "halving", **shown(PRUNE), "signal": "progress"},
        "prune_tokens_saved": main_prune["saved"], "prune_accuracy_loss": main_prune["loss"],
        "stop_at_rule": {"stop_at": STOP_AT, "min_gain": MIN_GAIN, "wave": WAVE},
        "stop_at_tokens_share": main_stop["share"], "stop_at_accuracy_loss": main_stop["loss"],
        "prune_curve": curve, "stop_at_curve": stops, "budget_curve": budgets,
        "fewer_candidates_curve": [fewer(recorded, k) for k in (1, 2, 4, 6, 8, 10, 12, 16) if k <= n],
        "engine": engine(model, tokenizer, rm, guide, asked[: min(questions, 500)], task, n),
    }  # fmt: skip


def record(
    model: Any, tokenizer: Any, rm: SwiftRewardModel, guide: SwiftRewardModel, rollouts: Sequence[Rollout]
) -> list[Recorded]:
    """Compute what streaming would have said of each recorded candidate after each of its tokens."""
    prompts, responses = [r.prompt_ids for r in rollouts], [r.response_ids for r in rollouts]
    scored = {
        name: score_tokens(model, tokenizer, head, prompts, responses, batch_size=256)
        for name, head in (("reward", rm), ("progress", guide))
    }
    place = {id(rollout): i for i, rollout in enumerate(rollouts)}
    generator, found = np.random.default_rng(0), []
    for group in group_by_question(rollouts).values():
        at, length = [place[id(rollout)] for rollout in group], np.array([len(r.response_ids) for r in group])
        signals = {"random": np.repeat(generator.normal(size=(len(group), 1)), length.max(), axis=1)}
        for name, tokens in scored.items():
            signals[name] = table([running(tokens[i].gate, tokens[i].reward) for i in at], length)
        ones = [[1.0] * size for size in length]
        logprobs = [rollout.extra["token_logprobs"] for rollout in group]
        signals["logprob"] = table([running(w, r) for w, r in zip(ones, logprobs, strict=True)], length)
        reward = np.array([scored["reward"][i].response_reward for i in at])
        right = np.array([rollout.label == 1 for rollout in group]).astype(int)
        found.append(Recorded(right, length, reward, rm.probability(reward), signals, int(rm.config.position == "token")))
    return found


def running(weights: Sequence[float], values: Sequence[float]) -> Floats:
    """Return the weighted mean of the values so far, after each token."""
    w = np.maximum(np.asarray(weights, dtype=np.float64), 1e-300)
    return np.asarray(np.cumsum(w * np.asarray(values)) / np.cumsum(w))


def table(curves: Sequence[Floats], length: NDArray[np.int64]) -> Floats:
    """Return curves as rows ``[n, T]``, each going on at its last value: what a finished candidate is known by."""
    out = np.empty((len(curves), int(length.max())))
    for row, curve in zip(out, curves, strict=True):
        row[: len(curve)], row[len(curve) :] = curve[: len(row)], curve[-1]
    return out


def pruned(recorded: Sequence[Recorded], rule: Prune, signal: str) -> dict[str, Any]:
    """Replay a pruning rule; return the share of tokens saved and the accuracy lost, in points."""
    spent, kept = 0, []
    for one in recorded:
        values, n = one.signals[signal], len(one.length)
        standing, cut = np.ones(n, dtype=bool), one.length.copy()
        for tokens in range(1, int(one.length.max())):  # scored; chosen are as many, or one more
            alive = np.flatnonzero(standing & (one.length > tokens + one.lag))
            if not len(alive) or not rule.checks(tokens):
                continue
            ended = [float(values[i, -1]) for i in np.flatnonzero(standing & (one.length <= tokens + one.lag))]
            drop = rule.hopeless(tokens, values[alive, tokens - 1].tolist(), ended, int(n - standing.sum()))
            gone = alive[np.array(drop)]
            standing[gone], cut[gone] = False, tokens + one.lag
        spent += int(cut.sum())
        kept.append(int(one.right[np.where(standing, one.reward, -np.inf).argmax()]))
    total = sum(int(one.length.sum()) for one in recorded)
    return {"saved": round(1 - spent / total, 4), "loss": loss(recorded, kept)}


def stopped(recorded: Sequence[Recorded], plan: CandidatePlan, group: int = GROUP) -> dict[str, Any]:
    """Replay a plan of waves; return the share of tokens spent and the accuracy lost, in points."""
    spent, kept = 0, []
    for start in range(0, len(recorded), group):
        part = recorded[start : start + group]
        used = [0] * len(part)
        while True:
            known = [
                QuestionProgress(one.probability[:k].tolist(), k, int(one.length[:k].sum()))
                for one, k in zip(part, used, strict=True)
            ]
            counts, _ = plan.next_wave(known)
            if not any(counts):
                break
            used = [k + more for k, more in zip(used, counts, strict=True)]
        spent += sum(int(one.length[:k].sum()) for one, k in zip(part, used, strict=True))
        kept += [int(one.right[:k][one.reward[:k].argmax()]) for one, k in zip(part, used, strict=True)]
    total = sum(int(one.length.sum()) for one in recorded)
    return {"share": round(spent / total, 4), "loss": loss(recorded, kept)}


def fewer(recorded: Sequence[Recorded], k: int) -> dict[str, Any]:
    """Return what the first ``k`` candidates alone would give: what any rule that stops early has to beat."""
    return {"n": k, **stopped(recorded, CandidatePlan(k, k))}


def engine(
    model: Any, tokenizer: Any, rm: SwiftRewardModel, guide: SwiftRewardModel, asked: Sequence[Any], task: Any, n: int
) -> dict[str, Any]:
    """Answer the questions anew with ``best_of_n`` itself, each way once: other samples, so not paired."""
    prune = Halving(PRUNE.min_tokens, PRUNE.growth, PRUNE.keep, guide=guide)
    ways: dict[str, dict[str, Any]] = {
        "all": {}, "prune": {"prune": prune}, "stop_at": {"stop_at": STOP_AT, "min_gain": MIN_GAIN, "wave": WAVE},
        "prune and stop_at": {"prune": prune, "stop_at": STOP_AT, "min_gain": MIN_GAIN, "wave": WAVE},
    }  # fmt: skip
    found: dict[str, Any] = {}
    for name, way in ways.items():
        prompts = [question.prompt for question in asked]
        results = best_of_n(model, tokenizer, rm, prompts, n, select="best", batch_size=GROUP, **way)
        right = [task.grade(question, result.best.text).label for question, result in zip(asked, results, strict=True)]
        spent = sum(result.tokens_spent for result in results)
        found[name] = {"accuracy": round(100 * float(np.mean([label == 1 for label in right])), 2), "tokens": spent}
    for one in found.values():
        one["share"] = round(one["tokens"] / found["all"]["tokens"], 4)
    return found


def base(one: Recorded) -> int:
    """Return whether the best of all candidates is right."""
    return int(one.right[one.reward.argmax()])


def loss(recorded: Sequence[Recorded], kept: Sequence[int]) -> dict[str, float | None]:
    """Return by how many points the choices are worse than the best of all candidates, with its paired interval."""
    points = paired_difference([100.0 * base(one) for one in recorded], [100.0 * right for right in kept])
    return {name: None if value is None else round(value, 2) for name, value in points.to_dict().items()}


def shown(rule: Any) -> dict[str, Any]:
    """Return a rule's numbers."""
    return {name: value for name, value in vars(rule).items() if name != "guide"}
