"""What each command of `swift-rm` does: from parsed arguments to a text and a JSON value."""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from swift_rm.embedded import load_language_model, resolve
from swift_rm.files import write_whole
from swift_rm.rollouts import Rollout, finite, read_rollouts


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
    return Result(*run_demo(questions, args.n, args.seed, progress=_watched()))


def sample(args: Namespace) -> Result:
    """Sample responses into a rollout file."""
    from swift_rm.sampling import sample as sample_rollouts

    model, tokenizer = _load(args)
    questions, grade, close = _task(args, tokenizer)
    try:
        rollouts = sample_rollouts(
            model, tokenizer, questions, args.n, args.out, grade=grade, batch_size=args.batch_size, seed=args.seed,
            max_new_tokens=args.max_new_tokens, progress=_watched(),
            chat_template_kwargs=args.chat_template_kwargs, **_sampling(args),
        )  # fmt: skip
    finally:
        close()
    labels = [rollout.label for rollout in rollouts]
    data = {
        "out": args.out, "questions": len(questions), "responses": len(rollouts), "right": labels.count(1),
        "not_right": labels.count(0),
        "unparsable": sum(rollout.answer is None for rollout in rollouts),
        "cut_at_length": sum(rollout.finish_reason == "length" for rollout in rollouts),
    }  # fmt: skip
    return Result(listing(data), data)


def train(args: Namespace) -> Result:
    """Train a reward model on graded rollouts."""
    from swift_rm.config import SwiftConfig
    from swift_rm.fit import fit
    from swift_rm.model_shape import model_shape
    from swift_rm.reward_model import check_folder

    check_folder(args.out)
    rollouts = _read(args)
    model, tokenizer = _load(args)
    shape = model_shape(model)
    config = SwiftConfig(
        shape.hidden_size,
        parse_layers(args.layers, shape.layers),
        position=args.position,
        region=args.region,
        gate=not args.no_gate,
    )
    rm = fit(
        model, tokenizer, rollouts, config, args.loss, forward_batch_size=args.batch_size, progress=_watched(), lr=args.lr,
        max_bytes=int(args.max_gib * 2**30) if args.max_gib else None, epochs=args.epochs, validation=args.validation,
        calibration=args.calibration, seed=args.seed, prefixes=args.prefixes,
    )  # fmt: skip
    rm.save_pretrained(args.out)
    data = {"out": args.out, "parameters": sum(p.numel() for p in rm.parameters()), **rm.config.training}
    return Result(listing(data), data)


def score(args: Namespace) -> Result:
    """Add reward and probability to every record of a JSONL file."""
    from swift_rm.encoding import encode
    from swift_rm.identity import check_base_model
    from swift_rm.json_lines import read_json_lines
    from swift_rm.reward_model import SwiftRewardModel
    from swift_rm.scoring import score_encoded

    records = read_json_lines(args.input)
    prompts = [_either(args.input, number, record, "prompt") for number, record in records]
    responses = [_either(args.input, number, record, "response") for number, record in records]
    Path(args.out).resolve().parent.mkdir(parents=True, exist_ok=True)
    model, tokenizer = _load(args)
    rm = SwiftRewardModel.from_pretrained(resolve(args.reward_model)).to(model.device)
    check_base_model(rm.config, model, tokenizer)
    encoded = encode(model, tokenizer, prompts, responses, rm.config.marker, args.chat_template_kwargs)
    rewards = score_encoded(model, rm, encoded, batch_size=args.batch_size, progress=_watched())
    scored = []
    for (_, record), one, reward, probability in zip(records, encoded, rewards, rm.probability(rewards).tolist(), strict=True):
        flag = {"flag": "not_finite" if reward != reward else one.region.flag} if reward != reward or one.region.flag else {}
        scored.append({**record, **finite({"reward": reward, "probability": probability}), **flag})
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
    rollouts = _read(args)
    evaluation = evaluate_rollouts(rollouts, n=args.n, seed=args.seed, deepconf_window=args.deepconf_window, progress=_watched())
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

    model, tokenizer = _load(args)
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


def printable(text: str) -> str:
    """Return model output on one line without control characters, which could drive the terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


def _task(args: Namespace, tokenizer: Any) -> tuple[list[Any], Callable[[Any, str], Any], Callable[[], None]]:
    name, _, split = args.task.partition(":")
    if name == "homework":
        from swift_rm.tasks.homework import HomeworkTask

        homework = HomeworkTask(split or "reward")
        return list(homework.questions(args.questions or 400, args.seed)), homework.grade, lambda: None
    from swift_rm.tasks.jsonl import JsonlTask

    file = JsonlTask(args.task, grading=args.grading, prompt_template=None if tokenizer.chat_template else "{question}")
    return list(file.questions(args.questions)), file.grade, file.close


def _either(path: str, number: int, record: dict[str, Any], kind: str) -> Any:
    """Return the token ids of a record's prompt or response, or else its text or messages."""
    value = record.get(f"{kind}_ids") if record.get(f"{kind}_ids") is not None else record.get(kind)
    if not isinstance(value, str | list):
        raise ValueError(
            f"{path}:{number}: neither '{kind}_ids' nor {kind!r} is there as ids, text or messages; it has {sorted(record)}"
        )
    return value


def _load(args: Namespace) -> tuple[Any, Any]:
    return load_language_model(args.model, device=args.device, dtype=args.dtype, revision=args.revision, progress=_watched())


def _read(args: Namespace) -> list[Rollout]:
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


def _sampling(args: Namespace) -> dict[str, Any]:
    return {"temperature": args.temperature, "top_p": args.top_p, "top_k": args.top_k}


def listing(data: Mapping[str, Any]) -> str:
    """Return figures by name, a line each."""
    return "\n".join(f"{key.replace('_', ' '):24} {value}" for key, value in data.items())


def _watched() -> bool:
    return sys.stderr.isatty()
