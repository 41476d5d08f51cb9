"""Make the reward model of the tiny reasoner with the public functions: sample, grade, fit, save, evaluate.

Three sets of questions that share none: the language model's text, the reward's training, the test. This script checks it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from swift_rm import SwiftConfig, evaluate, fit, sample
from swift_rm.models.load import TINY, load_language_model
from swift_rm.models.model_shape import model_shape
from swift_rm.records.rollouts import Rollout
from swift_rm.report.evaluation_table import format_table
from swift_rm.scoring.score import score_rollouts
from swift_rm.tasks.homework import HomeworkTask, parse, split_of


def main() -> None:
    """Sample, fit, save; then measure on test questions for the model card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=TINY, help="folder of the language model (default: the embedded one)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the reward model")
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("-n", type=int, default=8)
    parser.add_argument("--test-questions", type=int, default=500)
    parser.add_argument("--loss", default="bce")
    parser.add_argument(
        "--position", default="token", help="token (default: the grade is known best at the end token) or generating"
    )
    parser.add_argument("--prefixes", type=float, default=0.0, help="share of the loss over unfinished responses (default 0)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model, tokenizer = load_language_model(args.model)
    progress = sys.stderr.isatty()

    def responses(split: str, questions: int, n: int) -> list[Rollout]:
        task = HomeworkTask(split)
        asked = list(task.questions(questions, seed=args.seed))
        strangers = [question.question_id for question in asked if split_of(parse(question.question_id)) != split]
        if strangers:
            raise RuntimeError(f"{len(strangers)} questions are not of the split {split!r}: {strangers[:3]}")
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "rollouts.jsonl"
            return sample(
                model, tokenizer, asked, n, out, grade=task.grade, batch_size=64, seed=args.seed, progress=progress
            )  # fmt: skip

    train, test = responses("reward", args.questions, args.n), responses("test", args.test_questions, 16)
    shared = {rollout.question_id for rollout in train} & {rollout.question_id for rollout in test}
    if shared:
        raise RuntimeError(f"{len(shared)} questions are in both training and test")
    shape = model_shape(model)
    config = SwiftConfig(shape.hidden_size, tuple(range(shape.layers + 1)), base_model="tiny-reasoner", position=args.position)
    rm = fit(
        model, tokenizer, train, config, args.loss, seed=args.seed, prefixes=args.prefixes, forward_batch_size=256,
        progress=progress,
    )  # fmt: skip
    scored = score_rollouts(model, tokenizer, rm, test, batch_size=256, progress=progress)
    evaluation = evaluate(scored, deepconf_window=16)
    rm.with_evaluation(evaluation.to_dict()).save_pretrained(args.out)
    print(format_table(evaluation))


if __name__ == "__main__":
    main()
