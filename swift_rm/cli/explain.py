"""`swift-rm explain`: from a file of responses to the page that shows what the reward model makes of their tokens."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from swift_rm.cli.arguments import REWARD_HELP, Commands, add_model, add_template, command
from swift_rm.cli.loading import load
from swift_rm.records.answered_questions import read_answered_questions
from swift_rm.report.token_view_data import turns, view_candidate

if TYPE_CHECKING:
    from swift_rm.cli.output import Result


def add_parser(commands: Commands) -> None:
    """Add the command and its arguments."""
    parser = command(commands, "explain", "write a page that shows each token's gate and reward")
    add_model(parser)
    parser.add_argument("--reward-model", required=True, help=REWARD_HELP)
    parser.add_argument("--input", required=True, help="JSONL with a prompt and its response, or its candidates, on each line")
    parser.add_argument("--out", required=True, help="HTML file to write")
    parser.add_argument("--questions", type=int, default=20, help="only the first questions (default 20)")
    parser.add_argument("-n", type=int, default=16, help="only the first responses of each (default 16)")
    parser.add_argument("--batch-size", type=int, default=32, help="responses per forward pass (default 32)")
    add_template(parser)


def run(args: Namespace) -> Result:
    """Write the token view of a file's responses; raise ValueError that names the line of what cannot be read."""
    from swift_rm.cli.output import Result, listing
    from swift_rm.files.atomic_write import check_writable, write_whole
    from swift_rm.models.load import resolve
    from swift_rm.report.token_view import render_page
    from swift_rm.report.token_view_data import PageView, QuestionView
    from swift_rm.reward.identity import model_identity, short_name
    from swift_rm.reward.reward_model import SwiftRewardModel
    from swift_rm.scoring.token_scoring import score_tokens
    from swift_rm.tokens.encoding import check_ids, encode_prompt, encode_response

    if args.questions < 1 or args.n < 1:
        raise ValueError(f"--questions and -n must be at least 1, got {args.questions} and {args.n}")
    questions = read_answered_questions(args.input)
    shown = questions[: args.questions]
    answered = [one for question in shown for one in question.answered[: args.n]]
    check_writable(args.out, [args.input])
    model, tokenizer = load(args)
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
