"""The prompts with which an engine is checked: a task's, a file's, or a dozen that suit any language model."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from swift_rm.records.rollouts import Prompt

PROMPTS = (
    "The capital of France is",
    "2, 4, 6, 8,",
    "Once upon a time there was a small house at the edge of the wood, and in it lived",
    "def add(a, b):\n    return",
    "Question: What is 17 + 25?\nAnswer:",
    "Water boils when",
    "Der Zug nach Basel",
    "1. Wash the rice.\n2.",
    '{"name": "Ada", "born":',
    "She looked at the clock, which said 10:45, and",
    "A list of the planets, from the sun outwards: Mercury, Venus,",
    "To be, or not",
)


def prompts_of(args: Namespace, tokenizer: Any) -> list[Prompt]:
    """Return the first ``--questions`` prompts of ``--task`` or ``--input``, or of those above, which are given as they are.

    Raises ValueError for both, for more of them than there are, and for what is no task and no readable file.
    """
    if args.task and args.input:
        raise ValueError(f"give questions by --task or by --input, got both: {args.task} and {args.input}")
    if args.questions < 1:
        raise ValueError(f"--questions must be at least 1, got {args.questions}")
    if args.task:
        return _of_task(args, tokenizer)
    found: list[Prompt] = _of_file(args.input, tokenizer) if args.input else list(PROMPTS)
    if not args.input and len(found) < args.questions:
        raise ValueError(f"there are {len(PROMPTS)} built-in prompts, got --questions {args.questions}: give --task or --input")
    return found[: args.questions]


def _of_task(args: Namespace, tokenizer: Any) -> list[Prompt]:
    from swift_rm.tasks.task_lookup import open_task

    messages = bool(tokenizer.chat_template)
    questions, _, close = open_task(args.task, questions=args.questions, seed=args.seed, grading="exact", chat_template=messages)
    close()
    return [question.prompt for question in questions]


def _of_file(path: str, tokenizer: Any) -> list[Prompt]:
    from swift_rm.cli.question_records import read_records

    prompts: list[Prompt] = []
    for _, record in read_records(path):
        prompt = record.get("prompt_ids") or record.get("prompt")
        if prompt is None:
            text = record["question"]
            prompt = [{"role": "user", "content": text}] if tokenizer.chat_template else text
        prompts.append(prompt)
    if not prompts:
        raise ValueError(f"{path} holds no records")
    return prompts
