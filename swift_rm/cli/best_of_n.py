"""`swift-rm best-of-n`: questions from the command line to a table, or from a file to the lines of another, resumable."""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swift_rm.cli.question_records import Question, encode_question, read_records
from swift_rm.cli.shared import Result, listing
from swift_rm.records.rollouts import finite

if TYPE_CHECKING:
    from swift_rm.decoding.pruning import Prune
    from swift_rm.reward.reward_model import SwiftRewardModel
    from swift_rm.selection.candidates import BestOfN

STDOUT = "-"
MIN_GAIN = 0.01  # as best_of_n's


@dataclass(frozen=True)
class Answering:
    """Everything but the questions: the models, `best_of_n` bound to its arguments, and what decides the results."""

    tokenizer: Any
    shown: SwiftRewardModel  # the one whose rewards are there while candidates are generated
    prune: Prune | None
    ask: Callable[..., list[BestOfN]]
    decided_by: Mapping[str, Any]  # settings, model and reward_model, as the records hold them


def answer_questions(args: Namespace) -> Result:
    """Answer the questions of the command line or of a file; raise ValueError in one sentence for misuse."""
    from swift_rm.cli.api_commands import answer_from_api, asks_api

    check_options(args)
    records = (
        read_records(args.input) if args.input else [(f"question-{i}", {"question": q}) for i, q in enumerate(args.question)]
    )
    if asks_api(args):
        return answer_from_api(args, records)
    model, tokenizer = _load(args)
    questions = [encode_question(name, record, model, tokenizer, args) for name, record in records]
    answering = _prepare(args, model, tokenizer, questions)
    return _to_file(args, answering, questions) if args.input else _to_terminal(args, answering, questions)


def check_options(args: Namespace) -> None:
    """Raise ValueError for options that contradict each other or would do nothing."""
    from swift_rm.selection.rules import EXTERNAL_RULES

    if args.n < 1 or args.batch_size < 1:
        raise ValueError(f"-n and --batch-size must be at least 1, got {args.n} and {args.batch_size}")
    if bool(args.question) == bool(args.input):
        raise ValueError(f"give questions either as text or with --input, got {'both' if args.input else 'neither'}")
    if bool(args.input) != bool(args.out):
        raise ValueError(
            "--input and --out go together: " + ("where to, --out?" if args.input else "typed questions are printed")
        )
    if (args.select in EXTERNAL_RULES) != bool(args.external_model):
        given = args.external_model or "none"
        raise ValueError(f"--select rank and scale, and no other rule, read an --external-model: got {args.select}, {given}")
    if not args.prune and (args.prune_model or args.prune_min_tokens is not None):
        raise ValueError("--prune-model and --prune-min-tokens say how to --prune, which is not asked for")
    if args.stop_at is None and args.budget is None and (args.wave is not None or args.min_gain is not None):
        raise ValueError("--wave and --min-gain say how to go on with --stop-at or --budget, neither of which is asked for")
    if args.input and args.out != STDOUT and Path(args.out).exists() and Path(args.out).samefile(args.input):
        raise ValueError(f"--out is the --input: {args.out}")


def _load(args: Namespace) -> tuple[Any, Any]:
    from swift_rm.models.load import load_language_model

    return load_language_model(
        args.model, device=args.device, dtype=args.dtype, revision=args.revision, progress=sys.stderr.isatty()
    )


def _prepare(args: Namespace, model: Any, tokenizer: Any, questions: Sequence[Question]) -> Answering:
    """Load the other models, and say in full what decides the results."""
    from swift_rm.decoding.best_of_n import best_of_n
    from swift_rm.decoding.pruning import PRUNING_RULES
    from swift_rm.models.load import resolve
    from swift_rm.reward.identity import check_base_model, model_identity, short_name
    from swift_rm.reward.reward_model import SwiftRewardModel
    from swift_rm.sampling.generation import sampling_settings
    from swift_rm.scoring.external import SequenceClassificationReward

    rm = SwiftRewardModel.from_pretrained(resolve(args.reward_model)).to(model.device)
    guide = SwiftRewardModel.from_pretrained(resolve(args.prune_model)).to(model.device) if args.prune_model else None
    if guide is not None:
        check_base_model(guide.config, model, tokenizer)
    how = {} if args.prune_min_tokens is None else {"min_tokens": args.prune_min_tokens}
    prune = PRUNING_RULES[args.prune](guide=guide, **how) if args.prune else None
    second, external = None, None
    if args.external_model:
        if blind := [question.question_id for question in questions if question.prompt is None]:
            raise ValueError(f"--external-model reads text or messages, but question {blind[0]!r} has only token ids")
        second = SequenceClassificationReward.from_pretrained(args.external_model, device=args.device, dtype=args.dtype)
        readable = {tuple(question.prompt_ids): question.prompt for question in questions}

        def external(prompts: list[Any], responses: list[str]) -> list[float]:  # best_of_n is given ids
            return second([readable[tuple(prompt)] for prompt in prompts], responses)

    min_gain = MIN_GAIN if args.min_gain is None else args.min_gain
    longest = max(len(question.prompt_ids) for question in questions)
    sampling = {"temperature": args.temperature, "top_p": args.top_p, "top_k": args.top_k}
    drawn = sampling_settings(model, longest, args.n, args.max_new_tokens, sampling)

    def ask(batch: Sequence[Question], rule: Prune | None, **more: Any) -> list[BestOfN]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="stopped by Ctrl-C")  # the command says it, and how to go on
            return best_of_n(
                model, tokenizer, rm, [question.prompt_ids for question in batch], args.n, args.select, rule, args.stop_at,
                budget=args.budget, wave=args.wave, min_gain=min_gain, external=external,
                max_new_tokens=drawn["max_new_tokens"], **sampling, **more,
            )  # fmt: skip

    settings = {
        "n": args.n, "select": args.select, "external_model": second and model_identity(second.model),
        "prune": args.prune, "prune_min_tokens": getattr(prune, "min_tokens", None),
        "prune_model": guide and f"{short_name(args.prune_model)} {weights_fingerprint(guide)}",
        "stop_at": args.stop_at, "min_gain": min_gain, "wave": args.wave, "budget": args.budget, "seed": args.seed, **drawn,
        "chat_template_kwargs": args.chat_template_kwargs, "dtype": str(model.dtype).removeprefix("torch."),
        "reward_weights": weights_fingerprint(rm),
    }  # fmt: skip
    decided_by = {"settings": settings, "model": model_identity(model), "reward_model": short_name(args.reward_model)}
    return Answering(tokenizer, guide or rm, prune, ask, json.loads(json.dumps(decided_by)))


def _to_terminal(args: Namespace, answering: Answering, questions: Sequence[Question]) -> Result:
    """Answer typed questions, with a live table where somebody looks; after Ctrl-C with what is there."""
    from swift_rm.cli.candidate_table import LiveTable

    results: list[BestOfN] = []
    # With a budget the batches take turns, and a place in one would not tell which question is meant.
    live = sys.stderr.isatty() and not args.json and (args.budget is None or len(questions) <= args.batch_size)
    with ExitStack() as stack:
        if live:
            table = LiveTable(
                args.question, answering.tokenizer.decode, lambda rewards: answering.shown.probability(rewards).tolist()
            )
            stack.enter_context(table)
            rule, watch = answering.prune and table.told(answering.prune), table.watch
        else:
            table, rule, watch = None, answering.prune, None

        def keep(finished: list[BestOfN]) -> None:
            results.extend(finished)
            if table is not None:
                table.next_batch(len(finished))

        with suppress(KeyboardInterrupt):  # while no token was being generated; the others best_of_n catches
            answering.ask(
                questions, rule, watch=watch, on_results=keep, seed=args.seed, batch_size=args.batch_size,
                progress=sys.stderr.isatty() and not live,
            )  # fmt: skip
    return terminal_result(args, questions, results, answering.decided_by)


def terminal_result(
    args: Namespace, questions: Sequence[Question], results: Sequence[BestOfN], decided_by: Mapping[str, Any]
) -> Result:
    """Return the answers to typed questions: tables for people, records for programs; after Ctrl-C those that there are."""
    from swift_rm.cli.candidate_table import final_table

    texts = {question.question_id: text for question, text in zip(questions, args.question, strict=True)}
    pairs = _pairs(questions, results)
    records = [record_of(*pair, decided_by) for pair in pairs]
    if sys.stdout.isatty():
        text = "\n\n".join(final_table(texts[question.question_id], result, args.n) for question, result in pairs)
    else:  # a program reads it
        text = "\n".join(json.dumps(record, ensure_ascii=False, allow_nan=False) for record in records)
    whole = sum(result.ended != "interrupted" for result in results)
    stopped = f"stopped; {whole} of {len(questions)} questions were answered in full" if whole < len(questions) else None
    return Result(text, records, stopped=stopped)


def _to_file(args: Namespace, answering: Answering, questions: Sequence[Question]) -> Result:
    """Answer the questions of a file that the results do not hold yet, batch by batch, each with its own seed."""
    from tqdm.auto import tqdm

    from swift_rm.files.jsonl_appender import LineAppender
    from swift_rm.records.resume import read_results
    from swift_rm.sampling.generation import seed_for

    asked = {question.question_id: (question.prompt, question.prompt_ids) for question in questions}
    size, stopped = len(questions) if args.budget is not None else args.batch_size, False
    with ExitStack() as stack:
        file = None if args.out == STDOUT else stack.enter_context(LineAppender(args.out, begins='{"question_id": '))
        done = {} if file is None else read_results(args.out, asked, answering.decided_by)
        if args.budget is not None and 0 < len(done) < len(questions):
            raise ValueError(
                f"{args.out} holds {len(done)} of {len(questions)} questions, and --budget {args.budget} is shared out among "
                "all of them in one run: choose another file, or remove this one"
            )
        watched = sys.stderr.isatty()
        bar = stack.enter_context(tqdm(total=len(questions), desc="best of n", unit="question", disable=not watched, delay=1))
        try:
            for start in range(0, len(questions), size):
                batch = questions[start : start + size]
                if any(question.question_id not in done for question in batch):
                    seed = seed_for(args.seed, *[question.question_id for question in batch])
                    results = answering.ask(batch, answering.prune, seed=seed, batch_size=min(args.batch_size, len(batch)))
                    pairs = _final(batch, results, args.budget is not None)
                    stopped = len(pairs) < len(batch)
                    fresh = [record_of(*pair, answering.decided_by) for pair in pairs if pair[0].question_id not in done]
                    lines = [json.dumps(record, ensure_ascii=False, allow_nan=False) for record in fresh]
                    if file is not None:
                        file.append(lines)
                    else:
                        sys.stdout.write("".join(line + "\n" for line in lines))
                        sys.stdout.flush()
                    done.update({record["question_id"]: record for record in fresh})
                bar.update(len(batch))
                if stopped:
                    break
        except KeyboardInterrupt:  # while no token was being generated
            stopped = True
    if stopped or file is None:
        return Result("", None, stopped=stopped_sentence(args, len(done), len(questions)) if stopped else None)
    return file_result(args, done)


def file_result(args: Namespace, done: Mapping[str, Mapping[str, Any]], **more: Any) -> Result:
    """Return the counts of a file of results, and what ``more`` is known."""
    counts = Counter(str(record["ended"]) for record in done.values())
    spent, saved = (sum(record[key] for record in done.values()) for key in ("tokens_spent", "tokens_saved"))
    data = {"out": args.out, "questions": len(done), "tokens_spent": spent, "tokens_saved": saved, "ended": dict(counts), **more}
    rows = {**data, "ended": ", ".join(f"{reason} {count}" for reason, count in counts.items())}
    return Result(listing(rows), data)


def _pairs(questions: Sequence[Question], results: Sequence[BestOfN]) -> list[tuple[Question, BestOfN]]:
    """Return the questions that have a result, with it: after Ctrl-C some have none."""
    found = {id(result.prompt): result for result in results}
    return [(question, found[id(question.prompt_ids)]) for question in questions if id(question.prompt_ids) in found]


def _final(batch: Sequence[Question], results: Sequence[BestOfN], budgeted: bool) -> list[tuple[Question, BestOfN]]:
    """Return what an uninterrupted run would give too: all of a batch, or its first questions that nothing could change.

    The others wait for the next run, so that the order of the lines stays that of the questions. "gain" and "budget" are
    reconsidered after every wave, and are not final where the batch was interrupted.
    """
    pairs = _pairs(batch, results)
    if len(pairs) == len(batch) and all(result.ended != "interrupted" for _, result in pairs):
        return pairs
    final = []
    for question, (own, result) in zip(batch, pairs, strict=False):
        if budgeted or own is not question or result.ended not in ("all", "probability"):
            break
        final.append((question, result))
    return final


def record_of(question: Question, result: BestOfN, decided_by: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result as its record."""
    from swift_rm.records.resume import RESULT_KEYS

    known = {**asdict(result), **vars(question), **decided_by}
    return {key: finite(known[key]) for key in RESULT_KEYS}


def stopped_sentence(args: Namespace, answered: int, asked: int) -> str:
    """Say after Ctrl-C what is there, and how to go on."""
    if args.budget is not None:
        return "stopped; nothing was written: a budget is for all questions in one run"
    if args.out == STDOUT:
        return f"stopped; {answered} of {asked} questions were answered"
    return f"stopped; {answered} of {asked} questions are answered in {args.out}, and the same command goes on from there"


def weights_fingerprint(rm: SwiftRewardModel) -> str:
    """Return a hash of what a reward model computes: a folder of the same name may hold another one."""
    several = ("heads", "pessimism") if rm.config.heads > 1 else ()
    config = {key: getattr(rm.config, key) for key in ("layers", "position", "region", "gate", "calibration", *several)}
    content = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, value in sorted(rm.state_dict().items()):
        content.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return content.hexdigest()[:16]
