"""Better answers from a model behind an API, from its log-probabilities alone: sample, train, rerank.

    export OPENAI_API_KEY=...
    python examples/closed_api.py --api https://api.openai.com/v1 --model NAME --task train.jsonl --test test.jsonl

Any server of OpenAI's chat completions that returns `logprobs` will do. With --smoke a small server of the embedded model is
started here, and the questions are homework. No language model is loaded but that one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from swift_rm import ApiBestOfN, SwiftConfig, fit
from swift_rm.api.endpoint import Endpoint
from swift_rm.api.sampling import sample_api
from swift_rm.records.rollouts import Rollout
from swift_rm.selection import majority_vote
from swift_rm.tasks.task_lookup import open_task


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the options and run; an error is one sentence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--api", help="address of the server, with /v1")
    parser.add_argument("--model", default="tiny-reasoner", help="its name there")
    parser.add_argument("--task", default="homework", help="questions to train on, with answers: JSONL, or a world's name")
    parser.add_argument("--test", default="homework:test", help="questions to rerank")
    parser.add_argument("--questions", type=int, default=400, help="to train on (default 400)")
    parser.add_argument("--test-questions", type=int, default=100)
    parser.add_argument("--top", type=int, default=20, help="alternatives of a token that the server returns (default 20)")
    parser.add_argument("-n", type=int, default=8, help="responses to a question (default 8)")
    parser.add_argument("--out", type=Path, default=Path("closed-api"), help="folder (default closed-api)")
    parser.add_argument("--smoke", action="store_true", help="run it whole, tiny: it shows that it works, not what it gives")
    args = parser.parse_args(arguments)
    with ExitStack() as stack:
        if args.smoke:
            from small_server import serving

            args.api, args.questions, args.test_questions, args.n = stack.enter_context(serving(args.model)), 24, 6, 4
        try:
            print(run(args))
        except (ValueError, OSError) as error:
            sys.exit(f"closed_api: {error}")


def run(args: argparse.Namespace) -> str:
    """Sample and train, then answer the test questions; return what came of it."""
    args.out.mkdir(parents=True, exist_ok=True)
    rollouts = sample(args)
    rm = fit(None, None, rollouts, SwiftConfig.of_top_logprobs(args.top), loss="dpo")
    rm.save_pretrained(args.out / "reward-model")
    api = ApiBestOfN(args.model, rm, args.api, n=args.n)
    questions, grade, close = open_task(args.test, questions=args.test_questions, seed=1, grading="auto", chat_template=True)
    right = {"one response (%)": 0.0, "majority vote (%)": 0.0, "reranked (%)": 0.0}
    for question, result in zip(questions, api([question.prompt for question in questions]), strict=True):
        labels = [grade(question, candidate.text).label or 0 for candidate in result.candidates]
        vote = majority_vote([candidate.answer for candidate in result.candidates])
        voted = [label for label, candidate in zip(labels, result.candidates, strict=True) if candidate.answer == vote]
        chosen = labels[result.candidates.index(result.best)]
        for name, value in zip(right, (sum(labels) / len(labels), max(voted, default=0), chosen), strict=True):
            right[name] += 100 * value / len(questions)
    close()
    auroc = rm.config.training["validation_auroc_within"]
    lines = [f"{len(rollouts)} responses to train on, AUROC within held-out questions {auroc}"]
    lines += [f"{name:20} {value:5.1f}" for name, value in right.items()]
    return "\n".join([*lines, f"{api.usage.requests} requests, {api.usage.completion_tokens} tokens for the test questions"])


def sample(args: argparse.Namespace) -> list[Rollout]:
    """Sample and grade the questions to train on; a run that was stopped goes on where it was."""
    questions, grade, close = open_task(args.task, questions=args.questions, seed=0, grading="auto", chat_template=True)
    batches: Any = sample_api(
        Endpoint(args.model, args.api), questions, args.n, args.out / "train.jsonl", grade=grade, top_logprobs=args.top,
        progress=sys.stderr.isatty(),
    )  # fmt: skip
    with closing(batches):
        rollouts = [rollout for batch in batches for rollout in batch]
    close()
    return rollouts


if __name__ == "__main__":
    main()
