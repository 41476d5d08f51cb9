"""`sample --api` and `best-of-n --api`: the language model is behind an endpoint."""

from __future__ import annotations

import json
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from swift_rm.cli.loading import open_task_of
from swift_rm.cli.output import Result, count_samples, listing, watched
from swift_rm.records.question_records import QuestionRecord

if TYPE_CHECKING:
    from swift_rm.api.best_of_n import ApiBestOfN
    from swift_rm.selection.candidates import BestOfN

ONLY_WITH_API = ("concurrency", "timeout", "retries", "api_key_env", "extra_body", "any_model")
ONLY_HERE = (  # what needs the model's weights, or its tokens one by one
    "revision", "device", "dtype", "batch_size", "top_k", "features", "layers", "features_dtype", "stride", "positions", "ray",
    "actors", "external_model", "prune", "prune_min_tokens", "prune_model", "stop_at", "min_gain", "wave", "budget", "raw",
)  # fmt: skip
SETTINGS = {"concurrency": "concurrency", "timeout_s": "timeout", "retries": "retries", "key_env": "api_key_env"}
TEMPLATE = "chat_template_kwargs"


def asks_api(args: Namespace) -> bool:
    """Tell whether an endpoint is asked; raise ValueError for an option that then, or otherwise, would do nothing."""
    useless = ONLY_WITH_API if args.api is None else ONLY_HERE
    for name in useless:
        if getattr(args, name, None) != args.usual.get(name):
            goes = "goes with --api" if args.api is None else "needs the language model here, and not behind --api"
            more = ", which gets it as --extra-body '{\"top_k\": ...}'" if name == "top_k" else ""
            raise ValueError(f"--{name.replace('_', '-')} {goes}{more}")
    return args.api is not None


def sample_from_api(args: Namespace) -> Result:
    """Sample responses of an endpoint's model into a rollout file."""
    from swift_rm.api.endpoint import Endpoint
    from swift_rm.api.sampling import sample_api
    from swift_rm.reward.logprobs import MOST_ALTERNATIVES

    endpoint = Endpoint(args.model, args.api, **_settings(args))
    top = MOST_ALTERNATIVES if args.top_logprobs is None else args.top_logprobs
    with open_task_of(args, None) as (questions, grade):
        batches = sample_api(
            endpoint, questions, args.n, args.out, grade=grade, grade_timeout=args.grade_timeout, top_logprobs=top,
            temperature=args.temperature, top_p=args.top_p, max_tokens=args.max_new_tokens, seed=args.seed, progress=watched(),
        )  # fmt: skip
        counts = count_samples(batches)
    data = {"out": args.out, "questions": len(questions), **counts, **endpoint.usage.to_dict()}
    return Result(listing(data), data)


def answer_from_api(args: Namespace, records: Sequence[tuple[str, Mapping[str, Any]]]) -> Result:
    """Answer questions with the best of an endpoint's responses."""
    from swift_rm.api.best_of_n import ApiBestOfN
    from swift_rm.models.load import resolve
    from swift_rm.reward.identity import short_name, weights_fingerprint
    from swift_rm.reward.reward_model import SwiftRewardModel

    questions = [_question(name, record) for name, record in records]
    rm = SwiftRewardModel.from_pretrained(resolve(args.reward_model))
    drawn = {"temperature": args.temperature, "top_p": args.top_p, "max_tokens": args.max_new_tokens, "seed": args.seed}
    api = ApiBestOfN(
        args.model, rm, args.api, n=args.n, select=args.select, any_model=args.any_model, progress=watched(), **drawn,
        **_settings(args),
    )  # fmt: skip
    settings = {
        "n": args.n, "select": args.select, **drawn, "extra_body": api.endpoint.extra_body or None,
        "reward_weights": weights_fingerprint(rm),
    }  # fmt: skip
    identity = {"id": args.model, "revision": None}
    decided_by = {"settings": settings, "model": identity, "reward_model": short_name(args.reward_model)}
    decided_by = json.loads(json.dumps(decided_by))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="stopped by Ctrl-C")  # the command says it, and how to go on
        return _to_file(args, api, questions, decided_by) if args.input else _to_terminal(args, api, questions, decided_by)


def _settings(args: Namespace) -> dict[str, Any]:
    """Return how the endpoint is asked, as far as it was said."""
    body = args.extra_body or {}
    if not isinstance(body, dict) or not isinstance(args.chat_template_kwargs or {}, dict):
        raise ValueError("--extra-body and --chat-template-kwargs must be JSON objects")
    if args.chat_template_kwargs is not None:
        if TEMPLATE in body:
            raise ValueError(f"--chat-template-kwargs is also in --extra-body, as {TEMPLATE!r}: say it once")
        body = {**body, TEMPLATE: args.chat_template_kwargs}
    said = {name: getattr(args, option) for name, option in SETTINGS.items() if getattr(args, option) is not None}
    return {**said, "extra_body": body}


def _question(name: str, record: Mapping[str, Any]) -> QuestionRecord:
    """Turn a record into what the endpoint is asked; raise ValueError for one that has only token ids."""
    prompt, text = record.get("prompt"), record.get("question")
    if prompt is None and isinstance(text, str):
        prompt = [{"role": "user", "content": text}]
    if not prompt:
        raise ValueError(f"question {name!r} has no text or messages, and an API reads no token ids")
    return QuestionRecord(name, prompt, [])


def _to_terminal(args: Namespace, api: ApiBestOfN, questions: Sequence[QuestionRecord], decided_by: Mapping[str, Any]) -> Result:
    """Answer typed questions; what is missing in the end is said after the answers."""
    from swift_rm.api.failures import ApiFailure
    from swift_rm.cli.answers import terminal_result

    results: list[BestOfN] = []
    failed = _ask(api, questions, results.append)
    if failed and not results:
        raise ApiFailure(failed)
    counts = ", ".join(f"{value} {key.replace('_', ' ')}" for key, value in api.usage.to_dict().items())
    sys.stderr.write(f"swift-rm: {counts}\n")
    result = terminal_result(args, questions, results, decided_by)
    return replace(result, stopped=None if failed else result.stopped, failed=failed)


def _to_file(args: Namespace, api: ApiBestOfN, questions: Sequence[QuestionRecord], decided_by: Mapping[str, Any]) -> Result:
    """Answer the questions of a file that the results do not hold yet, each written as it is done."""
    from swift_rm.cli.answers import STDOUT, file_result, record_of, stopped_sentence
    from swift_rm.files.json_lines import json_line
    from swift_rm.files.jsonl_appender import LineAppender
    from swift_rm.records.resume import read_results

    asked = {question.question_id: (question.prompt, question.prompt_ids) for question in questions}
    with ExitStack() as stack:
        file = None if args.out == STDOUT else stack.enter_context(LineAppender(args.out, begins='{"question_id": '))
        done = {} if file is None else read_results(args.out, asked, decided_by)
        left = [question for question in questions if question.question_id not in done]
        places = {id(question.prompt_ids): question for question in left}

        def keep(result: BestOfN) -> None:
            if result.ended == "interrupted":  # asked again in full by the next run
                return
            record = record_of(places[id(result.prompt)], result, decided_by)
            line = json_line(record)
            if file is not None:
                file.append([line])
            else:
                sys.stdout.write(line + "\n")
                sys.stdout.flush()
            done[record["question_id"]] = record

        failed = _ask(api, left, keep) if left else None
    if failed and file is not None:
        failed = f"{failed}; {len(done)} of {len(questions)} are answered in {args.out}, and the same command goes on from there"
    if failed:
        return Result("", None, failed=failed)
    if len(done) < len(questions):
        return Result("", None, stopped=stopped_sentence(args, len(done), len(questions)))
    return Result("", None) if file is None else file_result(args, done, **api.usage.to_dict())


def _ask(api: ApiBestOfN, questions: Sequence[QuestionRecord], keep: Callable[[BestOfN], None]) -> str | None:
    """Answer questions, each kept as soon as it is; return why some have no answer, if requests failed."""
    from swift_rm.api.failures import ApiFailure
    from swift_rm.api.request_scheduler import as_messages

    own = [list(as_messages(question.prompt or "")) for question in questions]
    ids = {id(prompt): question.prompt_ids for prompt, question in zip(own, questions, strict=True)}

    def take(results: list[BestOfN]) -> None:
        for result in results:
            keep(replace(result, prompt=ids[id(result.prompt)]))

    try:
        api(own, on_results=take, names=[question.question_id for question in questions])
    except ApiFailure as failure:
        return str(failure)
    return None
