"""`swift-rm train`: reward heads from rollouts, preference pairs, a feature store, or while sampling."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from swift_rm.cli.arguments import (
    BANK_HELP,
    REGION_HELP,
    Commands,
    add_layers,
    add_model,
    add_ray,
    add_source,
    add_task,
    add_temperature,
    add_template,
    command,
    path,
)
from swift_rm.cli.output import Result, listing
from swift_rm.files.atomic_write import check_writable, write_whole

if TYPE_CHECKING:
    from swift_rm.cli.train_sources import Trained
    from swift_rm.training.head_validation import ValidatedHead

SOURCES = ("rollouts", "pairs", "features", "online")
READ, STORED, SAMPLED = ("rollouts", "pairs"), ("rollouts", "pairs", "features"), ("online",)
ONLY_WITH = {  # options that other sources would ignore
    "batch_size": READ, "max_gib": READ, "skip_bad_lines": READ, "epochs": STORED, "label_curve": STORED,
    "source": ("rollouts", "pairs", "online"), "chat_template_kwargs": ("pairs", "online"),
    **dict.fromkeys(
        ("task", "questions", "grading", "grade_timeout", "n", "save_rollouts", "questions_per_batch", "replay", "replay_gib",
         "temperature", "top_p", "top_k", "max_new_tokens", "ray", "actors"), SAMPLED,
    ),
}  # fmt: skip


def add_parser(commands: Commands) -> None:
    """Add the command and its arguments."""
    parser = command(commands, "train", "train reward heads on graded rollouts, pairs, a feature store, or while sampling")
    add_model(parser, required=False)
    source = parser.add_argument_group("what to learn from, one of these")
    source.add_argument("--rollouts", nargs="+", help="graded rollout files (JSONL)")
    source.add_argument("--pairs", nargs="+", help="preference files (JSONL): prompt, chosen, rejected")
    source.add_argument("--features", help="folder that `sample --features` wrote: needs no language model")
    source.add_argument("--online", action="store_true", help="sample --task now and train on the states as they come")
    online = parser.add_argument_group("with --online")
    add_task(online)
    online.add_argument("--save-rollouts", help="rollout file (JSONL) to write or go on with")
    online.add_argument("--questions-per-batch", type=int, default=16, help="questions sampled at once (default 16)")
    online.add_argument("--replay", type=int, default=4, help="gradient steps on remembered states after each (default 4)")
    online.add_argument("--replay-gib", type=float, default=1.0, help="memory for them (default 1)")
    add_temperature(online)
    add_ray(online)
    add_template(parser)
    parser.add_argument("--out", required=True, help="folder of the reward model")
    add_source(parser)
    add_layers(parser, None, "the last two, or what the features hold")
    parser.add_argument("--position", choices=("generating", "token"), help="default: generating, or what the features hold")
    parser.add_argument("--region", default="response", help=REGION_HELP)
    parser.add_argument("--no-gate", action="store_true", help="plain mean instead of the gated mean")
    losses = ("bce", "hinge", "dpo", "infonca", "nca")
    parser.add_argument("--loss", choices=losses, help="default bce; dpo with --pairs or --source top_logprobs")
    parser.add_argument("--bank", metavar="JSON", help=BANK_HELP)
    parser.add_argument("--standardise", default="feature", choices=("feature", "layer", "none"), help="default: feature")
    parser.add_argument("--balance", default="response", choices=("response", "question"), help="what weighs alike in the loss")
    parser.add_argument("--centre", action="store_true", help="take each question's mean from its states")
    parser.add_argument("--ensemble", type=int, default=1, help="heads in the reward model (default 1)")
    parser.add_argument("--pessimism", type=float, default=0.0, help="of an ensemble: deviations to subtract (default 0)")
    parser.add_argument(
        "--prefixes", type=float, default=0.0, help="share of the loss over unfinished responses, to guide pruning"
    )
    parser.add_argument(
        "--label-curve", metavar="FILE", type=path, help="also train on fewer questions and write what each number gives (JSON)"
    )
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--validation", type=float, default=0.2, help="share of questions held out (default 0.2)")
    parser.add_argument("--calibration", default="platt", choices=("platt", "temperature", "isotonic"))
    parser.add_argument("--batch-size", type=int, default=32, help="responses per forward pass (default 32)")
    parser.add_argument("--max-gib", type=float, help="memory for the states (default: half of what is free)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip-bad-lines", action="store_true", help="count invalid lines instead of stopping")
    parser.set_defaults(usual={action.dest: action.default for action in parser._actions})


def resumes(args: Namespace) -> bool:
    """Tell whether a run that was stopped goes on when it is started again."""
    return bool(args.online and args.save_rollouts)


def run(args: Namespace) -> Result:
    """Train a bank of heads (often of one), save the best and report them all."""
    from swift_rm.cli.train_options import check_source
    from swift_rm.cli.train_sources import from_features, from_pairs, from_rollouts, from_sampling
    from swift_rm.reward.reward_model import check_folder
    from swift_rm.training.head_validation import best_of

    check_folder(args.out)
    given = [name for name in SOURCES if getattr(args, name)]
    if len(given) != 1:
        raise ValueError(f"train needs one of --rollouts, --pairs, --features and --online, got {len(given)}")
    _refuse_ignored(args, given[0])
    check_source(args, given[0])
    ways: dict[str, Callable[[Namespace], Trained]] = {
        "rollouts": from_rollouts, "pairs": from_pairs, "features": from_features, "online": from_sampling,
    }  # fmt: skip
    if args.label_curve:
        check_writable(args.label_curve, [*(args.rollouts or ()), *(args.pairs or ())])
    judged, facts, curve = ways[given[0]](args)
    best = best_of(judged)
    best.rm.save_pretrained(args.out)
    data = {
        "out": args.out, "source": best.rm.config.source, "parameters": best.row["parameters"],
        **best.rm.config.training, **facts,
    }  # fmt: skip
    stopped = None
    if curve is not None:
        try:
            write_whole(args.label_curve, json.dumps(curve(best.plan), indent=2) + "\n")
            data["label_curve"] = args.label_curve
        except KeyboardInterrupt:
            stopped = f"stopped; the reward model is in {args.out}, but there is no label curve"
    if len(judged) == 1:
        return Result(listing(data), data, stopped=stopped)
    data = {**data, "head": best.plan.name, "heads": [one.row for one in judged]}
    text = f"{listing({key: value for key, value in data.items() if key != 'heads'})}\n\n{heads_table(judged)}"
    return Result(text, data, stopped=stopped)


def _refuse_ignored(args: Namespace, source: str) -> None:
    """Raise ValueError for an option that was given and that this source of states has no use for."""
    for name, sources in ONLY_WITH.items():
        if source not in sources and getattr(args, name) != args.usual[name]:
            ways = " or ".join(f"--{one}" for one in sources)
            raise ValueError(f"--{name.replace('_', '-')} goes with {ways}, not with --{source}")


def heads_table(judged: Sequence[ValidatedHead]) -> str:
    """Return the heads by their held-out AUROC, the best first, a line each."""
    width = max(len(one.plan.name) for one in judged)
    ranked = sorted(judged, key=lambda one: -one.auroc.value)
    lines = [
        f"{one.plan.name:{width}}  {one.auroc.value:.3f} [{one.auroc.low:.3f}, {one.auroc.high:.3f}]  {one.row['parameters']:,}"
        for one in ranked
    ]
    title = f"{'head':{width}}  AUROC within questions  parameters"
    return "\n".join([title, "-" * len(title), *lines])
