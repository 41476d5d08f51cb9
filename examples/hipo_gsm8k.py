"""HiPO on a real model and a file of questions, GSM8K's for example: adapters, the tags added, a judge text in words.

  python examples/hipo_gsm8k.py --train gsm8k_train.jsonl --test gsm8k_test.jsonl --out qwen-hipo

NOT RUN ON A LARGE MODEL BY US: only --smoke is tested, the same code on the embedded tiny thinker and a file that it writes.
A stopped run goes on when called again. Wants a chat template that knows `enable_thinking` (Qwen3's does). Where RL is to be
spread over GPUs, take the steps by command instead: docs/hipo.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hipo_steps import check_unfinished, in_pass_rewards, reinforce, say, told, write_questions

from swift_rm.hipo import Template
from swift_rm.hipo.cold_start.cold_rows import to_dataset, write_rows
from swift_rm.hipo.cold_start.endpoint_explainer import EndpointExplainer
from swift_rm.hipo.cold_start.judge_text import RuleExplainer
from swift_rm.hipo.cold_start.mode_sampling import sample_modes
from swift_rm.hipo.cold_start.pipeline import build
from swift_rm.hipo.cold_start.questions import answer_grader, hipo_rows
from swift_rm.hipo.cold_start.sft import lora_config, sft
from swift_rm.hipo.measuring import measure
from swift_rm.hipo.response.tags import add_tags, missing_tags
from swift_rm.models.load import TINY_THINKER, load_language_model
from swift_rm.tasks.jsonl import JsonlTask

SYSTEM = r"Put the final answer, a number and nothing else, within \boxed{}."
NUMBERS = {
    "questions": (512, "to learn from"), "test-questions": (200, "to measure on"), "tries": (8, "responses to each in each mode"),
    "steps": (200, "of RL"), "prompts": (16, "questions a step"), "rollouts": (8, "responses to each"), "lora": (32, "rank"),
    "batch-size": (8, "responses in a forward and backward pass"), "max-new-tokens": (2048, "of a response"),
}  # fmt: skip
SMOKE = {
    "model": TINY_THINKER, "questions": 40, "test_questions": 8, "tries": 4, "epochs": 6, "lr": 1e-3, "steps": 2, "prompts": 2,
    "rollouts": 4, "batch_size": 4, "max_new_tokens": 64, "device": "cpu",
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the options and run; an error is one sentence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Qwen/Qwen3-0.6B", help="Hub id or folder (default %(default)s)")
    parser.add_argument("--train", type=Path, help="JSONL file of questions and answers to learn from")
    parser.add_argument("--test", type=Path, help="the same, to measure on")
    parser.add_argument("--out", type=Path, required=True, help="folder for everything")
    parser.add_argument("--grading", choices=("auto", "exact", "numeric", "math"), default="numeric", help="default %(default)s")
    parser.add_argument("--rewards", choices=("labels", "swift"), default="labels", help="what a response earns (%(default)s)")
    parser.add_argument("--explainer", nargs=2, metavar=("URL", "MODEL"), help="an OpenAI-compatible endpoint writes judge texts")
    for name, (number, what) in NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, default=number, help=f"{what} (default %(default)s)")
    parser.add_argument("--epochs", type=float, default=2, help="of the cold start (default %(default)s)")
    parser.add_argument("--lr", type=float, default=2e-4, help="of the cold start (default %(default)s); RL takes a tenth")
    parser.add_argument("--device", help="default: a GPU if there is one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="the same code, tiny: it shows that it works, not what it gives")
    args = parser.parse_args(arguments)
    if not args.smoke and (args.train is None or args.test is None):
        parser.error("--train and --test are needed, or --smoke")
    try:
        if args.smoke:
            vars(args).update(SMOKE, train=write_questions(args.out, "reward", 40), test=write_questions(args.out, "test", 8))
        print(run(args, progress=sys.stderr.isatty()))
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(f"hipo_gsm8k: {error}") from error


def run(args: argparse.Namespace, *, progress: bool = False) -> str:
    """Do all that is not in ``args.out`` yet; return what there is to see."""
    check_unfinished(args.out / "run")
    system = None if args.smoke else SYSTEM  # for which the tiny one's chat template has no place
    loading = {"device": args.device, "dtype": "float32", "progress": progress}  # small steps vanish in bfloat16 weights
    options = {"batch_size": max(1, args.batch_size // args.tries), "max_new_tokens": args.max_new_tokens, "progress": progress}
    reading: Any = {"grading": args.grading, "system": system}
    with JsonlTask(args.train, **reading) as task, JsonlTask(args.test, **reading) as held_out:
        questions, test = list(task.questions(args.questions)), list(hipo_rows(list(held_out.questions(args.test_questions))))
        cold = args.out / "cold"
        if not (cold / "config.json").exists():
            cold_start(args, *load_language_model(args.model, **loading), task, questions, cold, options)
        model, tokenizer = load_language_model(str(cold), **loading)
        say("measuring the cold start")
        before = measure(model, tokenizer, test, answer_grader(held_out.grade), 2, seed=args.seed, **options)
        wanted = args.rewards == "swift"
        swift = in_pass_rewards(model, tokenizer, questions, task.grade, args.seed, **options) if wanted else None
        model = reinforce(
            model, tokenizer, answer_grader(task.grade), hipo_rows(questions), args.out / "run", swift=swift, progress=progress,
            peft_config=lora_config(model, args.lora), learning_rate=args.lr / 10, max_steps=args.steps,
            num_generations=args.rollouts, per_device_train_batch_size=args.batch_size,
            gradient_accumulation_steps=args.prompts * args.rollouts // args.batch_size,
            max_completion_length=args.max_new_tokens, save_strategy="steps", save_steps=25, save_total_limit=2, seed=args.seed,
        )  # fmt: skip
        after = measure(model, tokenizer, test, answer_grader(held_out.grade), 2, seed=args.seed, **options)
    return told(before, after, args.out / "run")


def cold_start(args: Any, model: Any, tokenizer: Any, task: JsonlTask, questions: Any, out: Path, options: Any) -> None:
    """Sample both modes, make the rows to train on, add the tags that the tokenizer lacks, and train."""
    tried = sample_modes(model, tokenizer, questions, args.tries, args.out / "data", grade=task.grade, seed=args.seed, **options)
    rule = RuleExplainer("terse" if args.smoke else "words")  # the tiny one's vocabulary has no words
    explain = EndpointExplainer(args.explainer[1], args.explainer[0]) if args.explainer else rule
    made = build(tried, tokenizer, questions=questions, explain=explain, seed=args.seed)
    write_rows(args.out / "data" / "cold.jsonl", made.rows)
    say(", ".join(f"{name.replace('_', ' ')} {count}" for name, count in made.counts.items()))
    missing = list(missing_tags(tokenizer, Template()))
    say(f"tags added: {add_tags(model, tokenizer, Template())}")
    learnt = sft(
        model, tokenizer, to_dataset(made.rows, tokenizer), out, epochs=args.epochs, lr=args.lr, lora=args.lora,
        batch_size=args.batch_size, new_tokens=tokenizer.convert_tokens_to_ids(missing), seed=args.seed,
        progress=options["progress"],
    )  # fmt: skip
    say(f"cold start: loss {learnt['loss_first']:.2f} to {learnt['loss_last']:.2f} in {learnt['steps']} steps")


if __name__ == "__main__":
    main()
