"""`swift-rm explain`: from a file of responses to the page that shows what the reward model makes of their tokens."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swift_rm.report.candidate_view import turns, view_candidate

if TYPE_CHECKING:
    from swift_rm.cli.shared import Result


@dataclass(frozen=True)
class Answered:
    """One response of a file: where it stands, the prompt and response to encode, and the record that says more of it."""

    place: str
    prompt: Any
    response: Any
    record: Mapping[str, Any]


@dataclass(frozen=True)
class Question:
    """One question of a file: its id if it has one, its prompt as people read it if that is there, and its responses."""

    question_id: str | None
    prompt: Any
    answered: list[Answered] = field(default_factory=list)


def explain(args: Namespace) -> Result:
    """Write the token view of a file's responses; raise ValueError that names the line of what cannot be read."""
    from swift_rm.cli.shared import Result, listing
    from swift_rm.files.atomic_write import check_writable, write_whole
    from swift_rm.models.load import load_language_model, resolve
    from swift_rm.report.token_view import PageView, QuestionView, render_page
    from swift_rm.reward.identity import model_identity, short_name
    from swift_rm.reward.reward_model import SwiftRewardModel
    from swift_rm.scoring.token_scoring import score_tokens
    from swift_rm.tokens.encoding import check_ids, encode_prompt, encode_response

    if args.questions < 1 or args.n < 1:
        raise ValueError(f"--questions and -n must be at least 1, got {args.questions} and {args.n}")
    questions = read_questions(args.input)
    shown = questions[: args.questions]
    answered = [one for question in shown for one in question.answered[: args.n]]
    check_writable(args.out, [args.input])
    model, tokenizer = load_language_model(
        args.model, device=args.device, dtype=args.dtype, revision=args.revision, progress=sys.stderr.isatty()
    )
    rm = SwiftRewardModel.from_pretrained(resolve(args.reward_model)).to(model.device)
    prompts = [encode_prompt(tokenizer, one.prompt, args.chat_template_kwargs) for one in answered]
    responses = [encode_response(tokenizer, one.response) for one in answered]
    for one, prompt_ids, response_ids in zip(answered, prompts, responses, strict=True):
        check_ids(model, prompt_ids, response_ids, f"{one.place}: the response")
    scored = score_tokens(model, tokenizer, rm, prompts, responses, batch_size=args.batch_size)
    chances = rm.probability([tokens.response_reward for tokens in scored]).tolist()
    rows = zip(answered, prompts, scored, chances, strict=True)
    views = iter([view_candidate(tokenizer, prompt_ids, tokens, p, one.record) for one, prompt_ids, tokens, p in rows])
    named = f"Token view of {Path(args.input).name}"
    page = render_page(
        PageView(
            named, model_identity(model)["id"], short_name(args.reward_model), rm.config.position,
            [
                QuestionView(
                    q.question_id, turns(tokenizer, q.prompt), [next(views) for _ in q.answered[: args.n]], len(q.answered)
                )
                for q in shown
            ],
            len(questions), rm.config.heads,
        )
    ).encode()  # fmt: skip
    write_whole(args.out, page)
    data = {
        "out": args.out, "questions": len(shown), "questions_left_out": len(questions) - len(shown), "responses": len(answered),
        "responses_left_out": sum(len(question.answered) for question in questions) - len(answered),
        "tokens": sum(map(len, responses)), "bytes": len(page),
    }  # fmt: skip
    return Result(listing(data), data)


def read_questions(path: str | Path) -> list[Question]:
    """Read the questions of a JSONL file with their responses, in the order of their first appearance.

    A line is one response (``prompt`` or ``prompt_ids``, ``response`` or ``response_ids``) or one question with its
    ``candidates`` (``text`` or ``token_ids`` each). Responses with the same ``question_id`` and prompt belong together.
    Raises ValueError with file and line for a line that is neither.
    """
    from swift_rm.files.json_lines import read_json_lines

    questions: dict[str, Question] = {}
    for number, record in read_json_lines(path):
        try:
            known = None if record.get("question_id") is None else str(record["question_id"])
            ids_or_text = _either(record, "prompt_ids", "prompt")
            readable = ids_or_text if record.get("prompt") is None else record["prompt"]
            question = questions.setdefault(json.dumps([known, readable]), Question(known, readable))
            for response, details in _responses(record):
                question.answered.append(Answered(f"{path}:{number}", ids_or_text, response, details))
        except ValueError as error:
            raise ValueError(f"{path}:{number}: neither a response nor a question with candidates: {error}") from error
    return list(questions.values())


def _responses(record: Mapping[str, Any]) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """Yield the responses of a line, each with the object that says more of it."""
    candidates = record.get("candidates", [record])
    if not isinstance(candidates, list) or not candidates or not all(isinstance(one, dict) for one in candidates):
        raise ValueError(f"'candidates' must be a list of at least one object, got {candidates!r:.60}")
    for one in candidates:
        yield _either(one, "token_ids", "text") if "candidates" in record else _either(one, "response_ids", "response"), one


def _either(record: Mapping[str, Any], ids: str, text: str) -> Any:
    """Return a record's token ids, or else its text (a prompt's may be messages)."""
    key = ids if record.get(ids) is not None else text
    value = record.get(key)
    if value is None:
        raise ValueError(f"there is neither {ids!r} nor {text!r}; it has {sorted(record)}")
    kinds = {type(item) for item in value} if isinstance(value, list) else set()
    readable = kinds <= {int} if isinstance(value, list) else isinstance(value, str) and key == text
    if not readable and not (key == "prompt" and kinds == {dict}):
        raise ValueError(f"{key!r} must be {'text or token ids' if key == text else 'token ids'}, got {value!r:.60}")
    return value
