"""What several commands open: a language model, its layers, a task, rollout files."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from swift_rm.cli.output import watched
from swift_rm.records.duplicate_responses import check_files_once, check_responses_once
from swift_rm.records.rollouts import Prompt, Rollout, read_rollouts

if TYPE_CHECKING:
    from swift_rm.sampling.batch_runner import Workers

LAST_LAYERS = (-2, -1)  # at least as good as all of them in benchmarks/results/heads.json, and fewer


def parse_layers(text: str, layers: int | None) -> tuple[int, ...]:
    """Read ``all``, ``-4,-3`` or ``0-32``; raise ValueError for anything else."""
    if text == "all" and layers is not None:
        return tuple(range(layers + 1))
    found: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.strip().partition("-") if not part.strip().startswith("-") else (part, "", "")
            found.extend(range(int(first), int(last) + 1) if dash else [int(first)])
    except ValueError:
        raise ValueError(f"layers must be 'all' or like -4,-3,-2,-1 or 0-32, got {text!r}") from None
    return tuple(found)


def layers_of(args: Namespace, layers: int) -> tuple[int, ...]:
    """Read ``--layers`` for a model of so many layers; the last two where nothing is said."""
    return LAST_LAYERS if args.layers is None else parse_layers(args.layers, layers)


@contextmanager
def open_model(args: Namespace) -> Iterator[tuple[Any, Any, Workers | None]]:
    """Yield the language model, its tokenizer, and with ``--ray`` the workers that run it: then the model has no weights here."""
    if args.ray is None:
        if args.actors is not None:
            raise ValueError(f"--actors {args.actors} goes with --ray")
        yield (*load(args), None)
        return
    from swift_rm.integrations.ray_actors import RayActors

    loading = {"device": args.device, "dtype": args.dtype, "revision": args.revision}
    with RayActors(args.model, actors=args.actors, address=args.ray, **loading) as workers:
        yield workers.model, workers.tokenizer, workers


@contextmanager
def open_task_of(args: Namespace, tokenizer: Any) -> Iterator[tuple[list[Any], Callable[[Any, str], Any]]]:
    """Yield the questions of ``--task`` and its grader, open until the end of the ``with`` block; of an API no ``tokenizer``."""
    from swift_rm.tasks.task_lookup import open_task

    messages = tokenizer is None or bool(tokenizer.chat_template)
    questions, grade, close = open_task(
        args.task, questions=args.questions, seed=args.seed, grading=args.grading, chat_template=messages
    )
    try:
        yield questions, grade
    finally:
        close()


def load(args: Namespace) -> tuple[Any, Any]:
    """Load the language model and its tokenizer."""
    from swift_rm.models.load import load_language_model

    return load_language_model(args.model, device=args.device, dtype=args.dtype, revision=args.revision, progress=watched())


def read_rollout_files(args: Namespace) -> list[Rollout]:
    """Read the graded rollouts; questions of several files that only share an id are told apart.

    Raises ValueError if a file is given twice, or if the files hold a response twice.
    """
    check_files_once(args.rollouts)
    skipped: Counter[str] = Counter()
    rollouts, files = [], []
    prompts: dict[str, list[Prompt | list[int]]] = {}
    for path in args.rollouts:
        for rollout in read_rollouts(path, skip_bad_lines=args.skip_bad_lines, skipped=skipped):
            # One question is one id with one prompt: files that number other questions alike are told apart.
            variants = prompts.setdefault(rollout.question_id, [])
            prompt = rollout.prompt_ids or rollout.prompt  # no ids are known where an API answered
            if prompt not in variants:
                variants.append(prompt)
            place = variants.index(prompt)
            rollouts.append(replace(rollout, question_id=f"{rollout.question_id}#{place + 1}") if place else rollout)
            files.append(path)
    for path, count in skipped.items():
        sys.stderr.write(f"swift-rm: skipped {count} invalid lines of {path}\n")
    check_responses_once(zip(files, rollouts, strict=True))
    return rollouts


def sampling_of(args: Namespace) -> dict[str, Any]:
    """Return the options of `generate` that say how to sample."""
    return {"temperature": args.temperature, "top_p": args.top_p, "top_k": args.top_k}
