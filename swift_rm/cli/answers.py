"""The answers of `swift-rm best-of-n`: to a terminal, or as lines of a file that a killed run goes on with."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from swift_rm.cli.output import Result, listing
from swift_rm.records.question_records import QuestionRecord
from swift_rm.records.rollouts import finite

if TYPE_CHECKING:
    from swift_rm.decoding.pruning import Prune
    from swift_rm.reward.reward_model import SwiftRewardModel
    from swift_rm.selection.candidates import BestOfN

STDOUT = "-"


@dataclass(frozen=True)
class Answering:
    """Everything but the questions: the models, `best_of_n` bound to its arguments, and what decides the results."""

    tokenizer: Any
    shown: SwiftRewardModel  # the one whose rewards are there while candidates are generated
    prune: Prune | None
    ask: Callable[..., list[BestOfN]]
    decided_by: Mapping[str, Any]  # settings, model and reward_model, as the records hold them


def answer_to_terminal(args: Namespace, answering: Answering, questions: Sequence[QuestionRecord]) -> Result:
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
    args: Namespace, questions: Sequence[QuestionRecord], results: Sequence[BestOfN], decided_by: Mapping[str, Any]
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


def answer_to_file(args: Namespace, answering: Answering, questions: Sequence[QuestionRecord]) -> Result:
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


def _pairs(questions: Sequence[QuestionRecord], results: Sequence[BestOfN]) -> list[tuple[QuestionRecord, BestOfN]]:
    """Return the questions that have a result, with it: after Ctrl-C some have none."""
    found = {id(result.prompt): result for result in results}
    return [(question, found[id(question.prompt_ids)]) for question in questions if id(question.prompt_ids) in found]


def _final(batch: Sequence[QuestionRecord], results: Sequence[BestOfN], budgeted: bool) -> list[tuple[QuestionRecord, BestOfN]]:
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


def record_of(question: QuestionRecord, result: BestOfN, decided_by: Mapping[str, Any]) -> dict[str, Any]:
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
