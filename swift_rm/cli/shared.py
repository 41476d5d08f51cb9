"""What each command of `swift-rm` does: from parsed arguments to a text and a JSON value."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from swift_rm.models.load import load_language_model
from swift_rm.records.duplicate_responses import check_files_once, check_responses_once
from swift_rm.records.rollouts import Prompt, Rollout, read_rollouts

if TYPE_CHECKING:
    from swift_rm.sampling.batch_runner import Workers

LAST_LAYERS = (-2, -1)  # at least as good as all of them in benchmarks/results/heads.json, and fewer


@dataclass(frozen=True)
class Result:
    """What a command prints: a text, or with ``--json`` its data (None: nothing more).

    ``ok`` False makes the exit code 1, and so does ``failed``, a sentence on what is missing; ``stopped`` is the sentence
    that follows a Ctrl-C, and makes it 130.
    """

    text: str
    data: Any
    ok: bool = True
    stopped: str | None = None
    failed: str | None = None


def demo(args: Namespace) -> Result:
    """Sample, score and select with the embedded models."""
    from swift_rm.cli.demo import run_demo

    questions = args.questions or (40 if args.quick else 300)
    return Result(*run_demo(questions, args.n, args.seed, progress=watched()))


def sample(args: Namespace) -> Result:
    """Sample responses into a rollout file."""
    from swift_rm.cli.api_commands import asks_api, sample_from_api

    if asks_api(args):
        return sample_from_api(args)
    from swift_rm.sampling.sample import iter_samples

    with (
        open_model(args) as (model, tokenizer, workers),
        open_task_of(args, tokenizer) as (questions, grade),
        feature_writer(args, model, tokenizer, len(questions)) as features,
    ):
        batches = iter_samples(
            model, tokenizer, questions, args.n, args.out, grade=grade, batch_size=args.batch_size, seed=args.seed,
            max_new_tokens=args.max_new_tokens, progress=watched(), features=features, grade_timeout=args.grade_timeout,
            chat_template_kwargs=args.chat_template_kwargs, workers=workers, top_logprobs=args.top_logprobs, **sampling_of(args),
        )  # fmt: skip
        counts = count_samples(batches)
    data = {"out": args.out, "questions": len(questions), **counts}
    return Result(listing(data), data)


def train(args: Namespace) -> Result:
    """Train reward heads."""
    from swift_rm.cli.train import train as train_heads

    return train_heads(args)


def features(args: Namespace) -> Result:
    """Describe a feature store, or say how large one will be."""
    from swift_rm.cli.features import features as describe

    return describe(args)


def probe(args: Namespace) -> Result:
    """Tell where in the hidden states the signal lives."""
    from swift_rm.cli.probe import probe as run_probe

    return run_probe(args)


def score(args: Namespace) -> Result:
    """Add rewards to the records of a file."""
    from swift_rm.cli.score import score as run_scoring

    return run_scoring(args)


def evaluate(args: Namespace) -> Result:
    """Measure rewards and baselines, and write the report."""
    from swift_rm.cli.evaluate import evaluate as run_evaluation

    return run_evaluation(args)


def compare(args: Namespace) -> Result:
    """Compare two reward models or rules."""
    from swift_rm.cli.compare import compare as run_comparison

    return run_comparison(args)


def best_of_n(args: Namespace) -> Result:
    """Answer questions with the best of N responses."""
    from swift_rm.cli.best_of_n import answer_questions

    return answer_questions(args)


def explain(args: Namespace) -> Result:
    """Write the token view of responses."""
    from swift_rm.cli.explain import explain as write_view

    return write_view(args)


def check_model(args: Namespace) -> Result:
    """Check the capture of hidden states on a model."""
    from swift_rm.parity.capture_check import check_model as run_checks

    model, tokenizer = load(args)
    rows = run_checks(model, tokenizer)
    width = max(len(row.name) for row in rows)
    text = "\n".join(f"{'ok  ' if row.passed else 'FAIL'}  {row.name:{width}}  {row.detail}" for row in rows)
    return Result(text, [asdict(row) for row in rows], ok=all(row.passed for row in rows))


def check_engine(args: Namespace) -> Result:
    """Compare an inference engine's states and rewards with transformers'."""
    from swift_rm.cli.check_engine import check_engine as run_check

    return run_check(args)


def import_published(args: Namespace) -> Result:
    """Turn a published checkpoint into a reward model folder."""
    from swift_rm.reward.reward_model import SwiftRewardModel

    layers = parse_layers(args.layers, None)
    rm = SwiftRewardModel.from_published(args.checkpoint, layers=layers, hidden_size=args.hidden_size, base_model=args.base_model)
    rm.save_pretrained(args.out)
    data = {
        "out": args.out,
        "parameters": sum(p.numel() for p in rm.parameters()),
        "gate": rm.config.gate,
        "position": rm.config.position,
    }
    return Result(listing(data), data)


def hipo(args: Namespace) -> Result:
    """Take a step of teaching a model when to think."""
    from swift_rm.cli.hipo import hipo as take_step

    return take_step(args)


def serve(args: Namespace) -> Result:
    """Serve OpenAI's API with the best of N."""
    from swift_rm.cli.serve import serve as run_server

    return run_server(args)


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


def feature_writer(args: Namespace, model: Any, tokenizer: Any, questions: int) -> AbstractContextManager[Any]:
    """Return the writer of ``--features``, having said how much disk it may need, or a context of None without it."""
    if args.features is None:
        return nullcontext()
    from swift_rm.features.estimate import announce
    from swift_rm.features.key import FeatureKey
    from swift_rm.features.writer import FeatureWriter
    from swift_rm.models.model_shape import model_shape
    from swift_rm.sampling.generation import sampling_settings

    layers = layers_of(args, model_shape(model).layers)
    key = FeatureKey.of(model, tokenizer, layers, args.positions, dtype=args.features_dtype, stride=args.stride, n=args.n)
    tokens = sampling_settings(model, 0, args.n, args.max_new_tokens, {})["max_new_tokens"]
    sys.stderr.write(f"swift-rm: {announce(args.features, key, questions, tokens)}\n")
    return FeatureWriter(args.features, key, progress=watched())


def count_samples(batches: Iterable[list[Rollout]]) -> Counter[str]:
    """Sample all of the batches; return how many responses there are, and of which kinds."""
    counts: Counter[str] = Counter(
        dict.fromkeys(("responses", "right", "not_right", "ungraded", "unparsable", "cut_at_length"), 0)
    )
    for rollouts in batches:
        counts["responses"] += len(rollouts)
        counts.update({1: "right", 0: "not_right", None: "ungraded"}[rollout.label] for rollout in rollouts)
        counts["unparsable"] += sum(rollout.answer is None and rollout.label is not None for rollout in rollouts)
        counts["cut_at_length"] += sum(rollout.finish_reason == "length" for rollout in rollouts)
    return counts


def sampling_of(args: Namespace) -> dict[str, Any]:
    """Return the options of `generate` that say how to sample."""
    return {"temperature": args.temperature, "top_p": args.top_p, "top_k": args.top_k}


def listing(data: Mapping[str, Any]) -> str:
    """Return figures by name, a line each."""
    return "\n".join(f"{key.replace('_', ' '):24} {value}" for key, value in data.items())


def watched() -> bool:
    """Tell whether somebody is watching."""
    return sys.stderr.isatty()
