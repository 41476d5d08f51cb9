"""The fallback for APIs against a real server: llama.cpp's own serves the tiny reasoner, and only its replies are read.

What `swift-rm sample --api` does writes the records of training and of test questions; a head is trained on them without a
language model, reranks the test records, and then, as :class:`ApiBestOfN`, new samples. ``first`` is the server's own order,
its first choice. ``parity`` compares rewards made of replies with those made of the local model's logits for the same texts.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.api.llama_cpp_server import PLAIN, llama_cpp_server
from benchmarks.recorder import arguments, finish
from swift_rm import ApiBestOfN, SwiftConfig, SwiftRewardModel, evaluate, fit
from swift_rm.api.endpoint import Endpoint
from swift_rm.api.sampling import sample_api
from swift_rm.evaluation.intervals import Resamples
from swift_rm.models.load import ASSETS, TINY, load_language_model
from swift_rm.records.rollouts import Rollout, group_by_question
from swift_rm.scoring.score import score, score_rollouts
from swift_rm.tasks.homework import HomeworkTask

TOP = 20


def main() -> None:
    """Serve, sample, train, score, rerank and compare; print or write the figures."""
    args = arguments(__doc__)
    train_questions, test_questions, n = (60, 20, 8) if args.quick else (800, 300, 16)
    with tempfile.TemporaryDirectory() as folder, llama_cpp_server(ASSETS / TINY) as address:
        finish("real_server", args, measured(address, Path(folder), train_questions, test_questions, n))


def measured(address: str, folder: Path, train_questions: int, test_questions: int, n: int) -> dict[str, Any]:
    """Return the figures of one run against the server at ``address``."""
    start = time.perf_counter()
    endpoint = Endpoint(TINY, address, extra_body=PLAIN)
    train = sampled(endpoint, "reward", train_questions, 8, folder)
    test = sampled(endpoint, "test", test_questions, n, folder)
    seconds, tokens = time.perf_counter() - start, sum(one.tokens for one in train + test)
    rm = fit(None, None, train, SwiftConfig.of_top_logprobs(TOP), loss="dpo")
    test = score_rollouts(None, None, rm, test)
    return {
        "server": "llama.cpp (xllamacpp)", "train_questions": train_questions, "train_n": 8, "test_questions": test_questions,
        "test_n": n, "offline": offline(test), "online": online(rm, address, test, n), "parity": parity(rm, test),
        "responses_per_second": round(len(train + test) / seconds, 2), "tokens": tokens, "usage": endpoint.usage.to_dict(),
        "total_seconds": round(time.perf_counter() - start, 1),
    }  # fmt: skip


def sampled(endpoint: Endpoint, split: str, questions: int, n: int, folder: Path) -> list[Rollout]:
    """Sample and grade homework, as `swift-rm sample --api` does."""
    task = HomeworkTask(split)
    asked = task.questions(questions, seed=5)
    batches = sample_api(endpoint, asked, n, folder / f"{split}.jsonl", grade=task.grade, grade_timeout=None, top_logprobs=TOP)
    return [rollout for rollouts in batches for rollout in rollouts]


def offline(test: list[Rollout]) -> dict[str, Any]:
    """Return what the rewards of the test records are worth beside the server's own order, and beside what needs no training."""
    figures = evaluate(test, deepconf_window=16).to_dict()
    groups = group_by_question(test).values()
    own = np.array([float(group[0].label or 0) for group in groups])
    best = np.array([float(max(group, key=lambda one: one.reward or 0).label or 0) for group in groups])
    return {"first_choice": interval(own), "swift_best": interval(best), "swift_best-first_choice": interval(best - own)} | {
        "accuracy": figures["accuracy"], "auroc_within": figures["auroc_within"]
    }  # fmt: skip


def online(rm: SwiftRewardModel, address: str, test: list[Rollout], n: int) -> dict[str, Any]:
    """Return what :class:`ApiBestOfN` gets right on the test questions with new samples, beside the first choices above."""
    task, groups = HomeworkTask("test"), group_by_question(test)
    asked = list(task.questions(len(groups), seed=5))
    api = ApiBestOfN(TINY, rm, address, n=n, select="best", seed=1, extra_body=PLAIN)
    results = api([question.prompt for question in asked])
    right = np.array([task.grade(one, result.best.text).label for one, result in zip(asked, results, strict=True)], dtype=float)
    own = np.array([float(groups[question.question_id][0].label or 0) for question in asked])
    return {"best_of_n": interval(right), "best_of_n-first_choice": interval(right - own), "usage": api.usage.to_dict()}


def parity(rm: SwiftRewardModel, test: list[Rollout]) -> dict[str, Any]:
    """Return how far rewards made of replies are from those of the local model's logits, on the tokens of the same texts.

    ``hidden_tokens`` counts responses with a special token within, which no text shows: locally there is nothing to compare.
    Where two tokens are equally likely but for rounding, the chosen one's rank is another, and that reward is farther off.
    """
    model, tokenizer = load_language_model(TINY, progress=False)
    same = [one for one in test if len(tokenizer(one.response, add_special_tokens=False)["input_ids"]) == one.tokens]
    local = np.array(score(model, tokenizer, rm, [one.prompt for one in same], [one.response for one in same], batch_size=256))
    apart = np.abs(local - np.array([one.reward for one in same], dtype=float))
    return {
        "responses": len(same), "hidden_tokens": len(test) - len(same), "median": float(np.median(apart)),
        "of_1000_all_but_one": float(np.quantile(apart, 0.999)), "largest": float(apart.max()),
        "spread_of_rewards": float(local.std()),
    }  # fmt: skip


def interval(values: Any) -> dict[str, float]:
    """Return the interval of the mean of questions' values [Q]."""
    resamples = Resamples(len(values))
    return resamples.interval(resamples.ratio(np.asarray(values, dtype=float))).to_dict()


if __name__ == "__main__":
    main()
