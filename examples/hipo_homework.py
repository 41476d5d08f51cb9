"""HiPO from nothing to a report page, on the homework world: teach the embedded tiny thinker when to think.

It samples every question in both modes, makes a cold start of the shortest right responses of the better mode, trains on
that, and reinforces: by labels, or with --rewards swift by the hidden states' own rewards, which cost no extra forward pass.
Unseen questions are measured before and after. The defaults take some minutes on two CPU cores; a stopped run goes on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hipo_steps import check_unfinished, in_pass_rewards, reinforce, say, told

from swift_rm.files.text import counted
from swift_rm.hipo.cold_start.cold_rows import to_dataset, write_rows
from swift_rm.hipo.cold_start.judge_text import RuleExplainer
from swift_rm.hipo.cold_start.mode_sampling import sample_modes
from swift_rm.hipo.cold_start.pipeline import build
from swift_rm.hipo.cold_start.questions import answer_grader, hipo_rows
from swift_rm.hipo.cold_start.sft import sft
from swift_rm.hipo.measuring import measure
from swift_rm.models.load import TINY_THINKER, load_language_model
from swift_rm.tasks.homework import HomeworkTask


@dataclass(frozen=True)
class Sizes:
    """How much is sampled, trained and measured."""

    questions: int = 600
    tries: int = 8  # responses to each in each mode
    epochs: int = 4  # of the cold start, with such a rate and batches
    lr: float = 5e-4
    batch_size: int = 32
    steps: int = 40  # of RL, each with so many responses
    prompts: int = 16
    rollouts: int = 8
    test_questions: int = 200
    max_new_tokens: int = 96


SMOKE = Sizes(
    questions=40, tries=4, epochs=4, lr=5e-4, batch_size=8, steps=2, prompts=2, rollouts=4, test_questions=8, max_new_tokens=64
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the options and run; an error is one sentence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("hipo-homework"), help="folder for everything (default hipo-homework)")
    parser.add_argument("--rewards", choices=("labels", "swift"), default="labels", help="what a response earns (default labels)")
    parser.add_argument("--steps", type=int, help=f"of RL (default {Sizes.steps})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="run it whole, tiny: it shows that it works, not what it gives")
    args = parser.parse_args(arguments)
    try:
        print(run(args, SMOKE if args.smoke else Sizes(), progress=sys.stderr.isatty()))
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(f"hipo_homework: {error}") from error


def run(args: argparse.Namespace, sizes: Sizes, *, progress: bool = False) -> str:
    """Do all of it in ``args.out``; return what there is to see."""
    check_unfinished(args.out / "run")
    task, seed = HomeworkTask("reward", "wide"), args.seed
    questions = list(task.questions(sizes.questions, seed=seed))
    test = list(hipo_rows(list(HomeworkTask("test", "wide").questions(sizes.test_questions, seed=seed))))
    grade = answer_grader(task.grade)
    model, tokenizer = load_language_model(TINY_THINKER, device="cpu", progress=False)
    sampling = {"batch_size": 64, "max_new_tokens": sizes.max_new_tokens}

    # 1. Responses in both modes; of these the cold start: which mode a question is taught in, and by which response.
    tried = sample_modes(
        model, tokenizer, questions, sizes.tries, args.out / "data", grade=task.grade, seed=seed, progress=progress, **sampling
    )
    explain = RuleExplainer("terse")  # the model's vocabulary has no words
    cold = build(tried, tokenizer, questions=questions, explain=explain, seed=seed)
    write_rows(args.out / "data" / "cold.jsonl", cold.rows)
    say(f"{counted(cold.counts['questions'], 'question')}: {cold.counts['on']} taught to think, {cold.counts['off']} to answer "
        f"at once, {cold.counts['dropped']} without a right response dropped")  # fmt: skip

    # 2. The model learns the template, and to judge.
    learnt = sft(
        model, tokenizer, to_dataset(cold.rows, tokenizer), args.out / "cold", epochs=sizes.epochs, lr=sizes.lr,
        batch_size=sizes.batch_size, seed=seed, progress=progress,
    )  # fmt: skip
    say(f"cold start: loss {learnt['loss_first']:.2f} to {learnt['loss_last']:.2f} in {counted(int(learnt['steps']), 'step')}")
    before = measure(model, tokenizer, test, grade, 4, seed=seed, **sampling)

    # 3. RL moves it towards the mode, and the answers, that do better.
    swift = in_pass_rewards(model, tokenizer, questions, task.grade, seed, **sampling) if args.rewards == "swift" else None
    model = reinforce(
        model, tokenizer, grade, hipo_rows(questions), args.out / "run", swift=swift, progress=progress,
        max_steps=sizes.steps if args.steps is None else args.steps, num_generations=sizes.rollouts,
        per_device_train_batch_size=sizes.prompts * sizes.rollouts, gradient_accumulation_steps=1, learning_rate=4e-4,
        warmup_steps=4, max_completion_length=sizes.max_new_tokens, temperature=1.0, seed=seed,
    )  # fmt: skip
    after = measure(model, tokenizer, test, grade, 4, seed=seed, **sampling)
    return told(before, after, args.out / "run")


if __name__ == "__main__":
    main()
