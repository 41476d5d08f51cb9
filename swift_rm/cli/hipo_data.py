"""`swift-rm hipo data`: sample in both modes, and write the cold start."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from swift_rm.cli.arguments import REWARD_HELP, Commands, command, path
from swift_rm.cli.hipo_shared import SOURCES, add_judge, add_questions, check_folder, load_reward_model, template_of
from swift_rm.cli.loading import load, open_task_of
from swift_rm.cli.output import Result, listing, watched

if TYPE_CHECKING:
    from swift_rm.hipo.cold_start.judge_text import Explainer
    from swift_rm.hipo.response.template import Template


def add_parser(steps: Commands) -> None:
    """Add the step and its arguments."""
    parser = command(
        steps, "data", "sample in both modes and write the cold start: in which mode each question is taught; resumable"
    )
    add_questions(parser)
    parser.add_argument("-n", type=int, default=8, help="responses per question and mode (default 8)")
    parser.add_argument(
        "--modes", nargs="+", default=["on", "off"], choices=("on", "off"), help="modes to sample (default: both)"
    )
    parser.add_argument("--delta", type=float, default=0.1, help="pass rates closer than this are a tie: think-off (default 0.1)")
    parser.add_argument("--random-share", type=float, default=0.01, help="share of questions with a random mode (default 0.01)")
    parser.add_argument("--source", default="labels", choices=SOURCES, help="where pass rates come from (default: labels)")
    parser.add_argument("--reward-model", help=REWARD_HELP)
    parser.add_argument(
        "--explainer", default="rule", metavar="rule|terse|URL",
        help="who writes the judge text: rule states the pass rates in words, terse in digits, an OpenAI-compatible URL asks",
    )  # fmt: skip
    parser.add_argument("--explainer-model", help="with a URL: the name of the model there")
    add_judge(parser)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--max-new-tokens", type=int, help="default: what the context holds, up to 1,024")
    parser.add_argument("--batch-size", type=int, default=16, help="questions per batch (default 16)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", required=True, type=path, help="folder to write, or to go on with: rollouts, cold.jsonl, counts.json"
    )


def run(args: Namespace) -> Result:
    """Sample in both modes and write the cold start; raise ValueError for options that do not go together."""
    from swift_rm.files.atomic_write import write_whole
    from swift_rm.hipo.cold_start.cold_rows import write_rows
    from swift_rm.hipo.cold_start.mode_sampling import sample_modes
    from swift_rm.hipo.cold_start.pipeline import build, check_explainer, check_shares

    template = template_of(args)
    explain = _explainer(args, template)
    if args.source != "labels" and args.reward_model is None:
        raise ValueError(f"--source {args.source} reads probabilities: give --reward-model, too")
    check_shares(args.delta, args.random_share)
    for name in ("cold.jsonl", "counts.json"):
        check_folder(args.out, name)
    model, tokenizer = load(args)
    if explain is not None:
        check_explainer(explain, tokenizer, template)
    rm = load_reward_model(args, model)
    with open_task_of(args, tokenizer) as (questions, grade):
        rollouts = sample_modes(
            model, tokenizer, questions, args.n, args.out, rm=rm, modes=list(dict.fromkeys(args.modes)), grade=grade,
            seed=args.seed, batch_size=args.batch_size, max_new_tokens=args.max_new_tokens, temperature=args.temperature,
            progress=watched(),
        )  # fmt: skip
    cold = build(
        rollouts, tokenizer, template=template, explain=explain, source=args.source, rm=rm, delta=args.delta,
        random_share=args.random_share, seed=args.seed, judged=template.judge is not None,
    )  # fmt: skip
    write_whole(Path(args.out) / "counts.json", json.dumps(dict(cold.counts), indent=2) + "\n")
    if not cold.rows:
        raise ValueError(f"none of the {cold.counts['questions']} questions has a correct response: there is nothing to train on")
    write_rows(Path(args.out) / "cold.jsonl", cold.rows)
    found = {"out": args.out, **cold.counts}
    return Result(listing(found), found)


def _explainer(args: Namespace, template: Template) -> Explainer | None:
    from swift_rm.api.keys import without_secrets
    from swift_rm.hipo.cold_start.endpoint_explainer import EndpointExplainer
    from swift_rm.hipo.cold_start.judge_text import RuleExplainer

    if args.explainer.startswith(("http://", "https://")):
        if args.explainer_model is None:
            where = without_secrets(args.explainer)
            raise ValueError(f"--explainer {where} is an endpoint: say with --explainer-model which model to ask there")
        return EndpointExplainer(args.explainer_model, args.explainer, template=template)
    if args.explainer not in ("rule", "terse"):
        raise ValueError(f"--explainer must be rule, terse or the URL of an endpoint, got {args.explainer!r}")
    if args.explainer_model is not None:
        raise ValueError(f"--explainer-model {args.explainer_model} goes with the URL of an endpoint as --explainer")
    return RuleExplainer("terse" if args.explainer == "terse" else "words")
