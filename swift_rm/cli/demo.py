"""`swift-rm demo`: the main job, whole, with the embedded models: sample answers to fresh questions, score, compare rules."""

from __future__ import annotations

import time
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from swift_rm.cli.arguments import Commands, command
from swift_rm.cli.output import Result, watched

if TYPE_CHECKING:
    from swift_rm.records.rollouts import Rollout


DEEPCONF_WINDOW = 16  # about one step of homework: at DeepConf's own 2,048 its four confidences would be one


def add_parser(commands: Commands) -> None:
    """Add the command and its arguments."""
    parser = command(commands, "demo", "sample, score and select with the embedded models, on fresh questions")
    parser.add_argument("--questions", type=int, help="number of held-out questions (default 300; 40 with --quick)")
    parser.add_argument("-n", type=int, default=16, help="responses per question (default 16)")
    parser.add_argument("--quick", action="store_true", help="fewer questions, a few seconds")
    parser.add_argument("--seed", type=int, default=0)


def run(args: Namespace) -> Result:
    """Sample, score and select with the embedded models."""
    questions = args.questions or (40 if args.quick else 300)
    return Result(*run_demo(questions, args.n, args.seed, progress=watched()))


def run_demo(questions: int, n: int, seed: int = 0, *, progress: bool = False) -> tuple[str, dict[str, Any]]:
    """Return the demo's report as text and as DESIGN's JSON; the questions are in no training text of the models."""
    from swift_rm.evaluation.evaluate import evaluate
    from swift_rm.models.load import ASSETS, TINY, TINY_REWARD, load_language_model
    from swift_rm.report.evaluation_table import format_table
    from swift_rm.reward.reward_model import SwiftRewardModel
    from swift_rm.sampling.sample import sample
    from swift_rm.scoring.score import score_rollouts
    from swift_rm.tasks.homework import HomeworkTask

    start = time.monotonic()
    model, tokenizer = load_language_model(str(ASSETS / TINY), progress=progress)
    rm = SwiftRewardModel.from_pretrained(ASSETS / TINY_REWARD).to(model.device)
    task = HomeworkTask("test")
    rollouts = sample(
        model,
        tokenizer,
        task.questions(questions, seed),
        n,
        grade=task.grade,
        batch_size=64,
        seed=seed,
        progress=progress,
    )
    scored = score_rollouts(model, tokenizer, rm, rollouts, batch_size=256, progress=progress)
    evaluation = evaluate(scored, seed=seed, deepconf_window=DEEPCONF_WINDOW, progress=progress)
    seconds = round(time.monotonic() - start, 1)
    example = _example(scored)
    text = (f"{example}\n\n" if example else "") + format_table(evaluation) + f"\n{seconds} s on {model.device}"
    return text, {**evaluation.to_dict(), "seconds": seconds}


def _example(rollouts: list[Rollout]) -> str:
    """Show one question on which the vote fails and the reward does not, if there is one."""
    from swift_rm.records.rollouts import group_by_question
    from swift_rm.selection.rules import best, majority_vote

    for group in group_by_question(rollouts).values():
        rewards, answers = [r.reward for r in group], [r.answer for r in group]
        chosen = group[best(rewards)]
        if chosen.label == 1 and majority_vote(answers) != chosen.answer:
            shown = sorted(group, key=lambda r: -(r.reward or 0))
            lines = [
                f"  {r.reward or 0:6.2f}  {r.answer or '-':>4}  {'right' if r.label else 'wrong'}  {r.response}"
                for r in [*shown[:3], *shown[-3:]]
            ]
            head = (
                f"For example {group[0].question_id}: the vote of {len(group)} says {majority_vote(answers)}, "
                f"the highest reward says {chosen.answer}, which is right."
            )
            return "\n".join([head, "  reward  answer  label  response (three highest, three lowest)", *lines])
    return ""
