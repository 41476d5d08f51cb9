"""What each command of `swift-rm` does: from parsed arguments to a text and a JSON value."""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from swift_rm.embedded import load_language_model, resolve
from swift_rm.files import write_whole
from swift_rm.rollouts import Rollout, finite, read_rollouts

LAST_LAYERS = (-2, -1)  # at least as good as all of them in benchmarks/results/heads.json, and fewer


@dataclass(frozen=True)
class Result:
    """What a command prints: a text, or with ``--json`` its data (None: nothing more).

    ``ok`` False makes the exit code 1; ``stopped`` is the sentence that follows a Ctrl-C, and makes it 130.
    """

    text: str
    data: Any
    ok: bool = True
    stopped: str | None = None


def demo(args: Namespace) -> Result:
    """Sample, score and select with the embedded models."""
    from swift_rm.demo import run_demo

    questions = args.questions or (40 if args.quick else 300)
    return Result(*run_demo(questions, args.n, args.seed, progress=watched()))


def sample(args: Namespace) -> Result:
    """Sample responses into a rollout file."""
    from swift_rm.sampling import sample as sample_rollouts

    model, tokenizer = load(args)
    questions, grade, close = open_task_of(args, tokenizer)
    try:
        with feature_writer(args, model, tokenizer, len(questions)) as features:
            rollouts = sample_rollouts(
                model, tokenizer, questions, args.n, args.out, grade=grade, batch_size=args.batch_size, seed=args.seed,
                max_new_tokens=args.max_new_tokens, progress=watched(), features=features, grade_timeout=args.grade_timeout,
                chat_template_kwargs=args.chat_template_kwargs, **sampling_of(args),
            )  # fmt: skip
    finally:
        close()
    labels = [rollout.label for rollout in rollouts]
    data = {
        "out": args.out, "questions": len(questions), "responses": len(rollouts), "right": labels.count(1),
        "not_right": labels.count(0),
        "ungraded": labels.count(None),
        "unparsable": sum(rollout.answer is None and rollout.label is not None for rollout in rollouts),
        "cut_at_length": sum(rollout.finish_reason == "length" for rollout in rollouts),
    }  # fmt: skip
    return Result(listing(data), data)


def train(args: Namespace) -> Result:
    """Train reward heads."""
    from swift_rm.training import train as train_heads

    return train_heads(args)


def features(args: Namespace) -> Result:
    """Describe a feature store, or say how large one will be."""
    from swift_rm.feature_commands import features as describe

    return describe(args)


def probe(args: Namespace) -> Result:
    """Tell where in the hidden states the signal lives."""
    from swift_rm.probe_commands import probe as run_probe

    return run_probe(args)


def score(args: Namespace) -> Result:
    """Add reward and probability to every record of a JSONL file."""
    from swift_rm.encoding import encode
    from swift_rm.identity import check_base_model
    from swift_rm.json_lines import read_json_lines
    from swift_rm.reward_model import SwiftRewardModel
    from swift_rm.scoring import reward_spreads, score_heads

    records = read_json_lines(args.input)
    prompts = [_either(args.input, number, record, "prompt") for number, record in records]
    responses = [_either(args.input, number, record, "response") for number, record in records]
    Path(args.out).resolve().parent.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load(args)
    rm = SwiftRewardModel.from_pretrained(resolve(args.reward_model)).to(model.device)
    check_base_model(rm.config, model, tokenizer)
    encoded = encode(model, tokenizer, prompts, responses, rm.config.region, args.chat_template_kwargs)
    heads = score_heads(model, rm, encoded, batch_size=args.batch_size, progress=watched())
    rewards: list[float] = rm.head.combine(heads).tolist()
    scored, spreads = [], reward_spreads(heads)
    for (_, record), one, reward, spread, probability in zip(
        records, encoded, rewards, spreads, rm.probability(rewards).tolist(), strict=True
    ):
        flag = {"flag": "not_finite" if reward != reward else one.region.flag} if reward != reward or one.region.flag else {}
        scored.append({**record, **finite({"reward": reward, "probability": probability, **spread}), **flag})
    write_whole(args.out, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in scored))
    flags = Counter(record["flag"] for record in scored if "flag" in record)
    good = [reward for reward in rewards if reward == reward]
    data = {"out": args.out, "responses": len(rewards), "mean_reward": sum(good) / max(1, len(good)), **flags}
    return Result(listing(data), data)


def evaluate(args: Namespace) -> Result:
    """Measure rewards and baselines."""
    from swift_rm.evaluation import evaluate as evaluate_rollouts
    from swift_rm.report import format_table
    from swift_rm.reward_model import SwiftRewardModel

    start = time.monotonic()
    if args.reward_model and not Path(args.reward_model).is_dir():
        raise ValueError(f"--reward-model {args.reward_model} is not a folder, whose card could get the table")
    rm = SwiftRewardModel.from_pretrained(args.reward_model) if args.reward_model else None
    rollouts = read_rollout_files(args)
    evaluation = evaluate_rollouts(rollouts, n=args.n, seed=args.seed, deepconf_window=args.deepconf_window, progress=watched())
    data = {**evaluation.to_dict(), "seconds": round(time.monotonic() - start, 2)}
    if rm is not None:
        rm.with_evaluation(data).save_pretrained(args.reward_model)
    return Result(format_table(evaluation).rstrip("\n"), data)


def best_of_n(args: Namespace) -> Result:
    """Answer questions with the best of N responses."""
    from swift_rm.answering import answer_questions

    return answer_questions(args)


def explain(args: Namespace) -> Result:
    """Write the token view of responses."""
    from swift_rm.explain import explain as write_view

    return write_view(args)


def check_model(args: Namespace) -> Result:
    """Check the capture of hidden states on a model."""
    from swift_rm.model_check import check_model as run_checks

    model, tokenizer = load(args)
    rows = run_checks(model, tokenizer)
    width = max(len(row.name) for row in rows)
    text = "\n".join(f"{'ok  ' if row.passed else 'FAIL'}  {row.name:{width}}  {row.detail}" for row in rows)
    return Result(text, [asdict(row) for row in rows], ok=all(row.passed for row in rows))


def import_published(args: Namespace) -> Result:
    """Turn a published checkpoint into a reward model folder."""
    from swift_rm.reward_model import SwiftRewardModel

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


def printable(text: str) -> str:
    """Return model output on one line without control characters, which could drive the terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


def open_task_of(args: Namespace, tokenizer: Any) -> tuple[list[Any], Callable[[Any, str], Any], Callable[[], None]]:
    """Return the questions of ``--task``, its grader, and what to call when done with both."""
    from swift_rm.tasks.named import open_task

    return open_task(
        args.task, questions=args.questions, seed=args.seed, grading=args.grading, chat_template=bool(tokenizer.chat_template)
    )


def _either(path: str, number: int, record: dict[str, Any], kind: str) -> Any:
    """Return the token ids of a record's prompt or response, or else its text or messages."""
    value = record.get(f"{kind}_ids") if record.get(f"{kind}_ids") is not None else record.get(kind)
    if not isinstance(value, str | list):
        raise ValueError(
            f"{path}:{number}: neither '{kind}_ids' nor {kind!r} is there as ids, text or messages; it has {sorted(record)}"
        )
    return value


def load(args: Namespace) -> tuple[Any, Any]:
    """Load the language model and its tokenizer."""
    return load_language_model(args.model, device=args.device, dtype=args.dtype, revision=args.revision, progress=watched())


def read_rollout_files(args: Namespace) -> list[Rollout]:
    """Read the graded rollouts; questions of several files that only share an id are told apart."""
    skipped: Counter[str] = Counter()
    rollouts = []
    prompts: dict[str, list[list[int]]] = {}
    for path in args.rollouts:
        for rollout in read_rollouts(path, skip_bad_lines=args.skip_bad_lines, skipped=skipped):
            # One question is one id with one prompt: files that number other questions alike are told apart.
            variants = prompts.setdefault(rollout.question_id, [])
            if rollout.prompt_ids not in variants:
                variants.append(rollout.prompt_ids)
            place = variants.index(rollout.prompt_ids)
            rollouts.append(replace(rollout, question_id=f"{rollout.question_id}#{place + 1}") if place else rollout)
    for path, count in skipped.items():
        sys.stderr.write(f"swift-rm: skipped {count} invalid lines of {path}\n")
    return rollouts


def feature_writer(args: Namespace, model: Any, tokenizer: Any, questions: int) -> AbstractContextManager[Any]:
    """Return the writer of ``--features``, having said how much disk it may need, or a context of None without it."""
    if args.features is None:
        return nullcontext()
    from swift_rm.feature_estimate import announce
    from swift_rm.feature_key import FeatureKey
    from swift_rm.feature_writer import FeatureWriter
    from swift_rm.generation import sampling_settings
    from swift_rm.model_shape import model_shape

    layers = layers_of(args, model_shape(model).layers)
    key = FeatureKey.of(model, tokenizer, layers, args.positions, dtype=args.features_dtype, stride=args.stride, n=args.n)
    tokens = sampling_settings(model, 0, args.n, args.max_new_tokens, {})["max_new_tokens"]
    sys.stderr.write(f"swift-rm: {announce(args.features, key, questions, tokens)}\n")
    return FeatureWriter(args.features, key, progress=watched())


def sampling_of(args: Namespace) -> dict[str, Any]:
    """Return the options of `generate` that say how to sample."""
    return {"temperature": args.temperature, "top_p": args.top_p, "top_k": args.top_k}


def listing(data: Mapping[str, Any]) -> str:
    """Return figures by name, a line each."""
    return "\n".join(f"{key.replace('_', ' '):24} {value}" for key, value in data.items())


def watched() -> bool:
    """Tell whether somebody is watching."""
    return sys.stderr.isatty()
