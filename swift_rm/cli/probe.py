"""`swift-rm probe`: from graded rollouts to the tables of where the signal lives."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

from swift_rm.cli.arguments import REGION_HELP, REWARD_HELP, Commands, add_layers, add_model, command
from swift_rm.evaluation.probed_states import read_states
from swift_rm.records.rollouts import Rollout, group_by_question

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from swift_rm.cli.output import Result

POINTS = 2000  # responses whose places are written for pictures


def add_parser(commands: Commands) -> None:
    """Add the command and its arguments."""
    parser = command(commands, "probe", "tell where in the hidden states the signal lives: layers, directions, gate")
    add_model(parser)
    parser.add_argument("--rollouts", required=True, nargs="+", help="graded rollout files (JSONL)")
    parser.add_argument("--reward-model", help=f"also show where its gate looks; {REWARD_HELP}")
    add_layers(parser)
    parser.add_argument("--position", choices=("generating", "token"), help="default: the reward model's, or generating")
    parser.add_argument("--region", help=f"{REGION_HELP} (default: the reward model's, or response)")
    parser.add_argument("--questions", type=int, help="only the first questions")
    parser.add_argument("--folds", type=int, default=5, help="folds of the cross-validation over questions (default 5)")
    parser.add_argument("--batch-size", type=int, default=32, help="responses per forward pass (default 32)")
    parser.add_argument("--max-gib", type=float, help="memory for the states (default: half of what is free)")
    parser.add_argument("--out", help="JSON file of all figures, with the points of the first 2,000 responses for pictures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip-bad-lines", action="store_true", help="count invalid lines instead of stopping")


def run(args: Namespace) -> Result:
    """Read the rollouts, load the model and probe it, see :func:`run_probe`."""
    from swift_rm.cli.loading import load, read_rollout_files
    from swift_rm.files.atomic_write import check_writable

    if args.out:
        check_writable(args.out, args.rollouts)
    rollouts = read_rollout_files(args)
    return run_probe(args, rollouts, *load(args))


def run_probe(args: Namespace, rollouts: Sequence[Rollout], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Result:
    """Probe the layers of a model on graded rollouts, and the gate of a reward model if one is given.

    Raises ValueError where the reward model reads at another position, region or layer than asked for.
    """
    from swift_rm.cli.loading import parse_layers
    from swift_rm.cli.output import Result, watched
    from swift_rm.evaluation import probing
    from swift_rm.files.atomic_write import check_writable, write_whole
    from swift_rm.models.load import resolve
    from swift_rm.models.model_shape import model_shape
    from swift_rm.reward.config import SwiftConfig
    from swift_rm.reward.identity import check_sampled_by, describe_base
    from swift_rm.reward.reward_model import SwiftRewardModel

    if args.questions is not None and args.questions < 1:
        raise ValueError(f"--questions must be at least 1, got {args.questions}")
    if args.out:
        check_writable(args.out)
    rm = SwiftRewardModel.from_pretrained(resolve(args.reward_model)).to(model.device) if args.reward_model else None
    position = args.position or (rm.config.position if rm else "generating")
    region = args.region or (rm.config.region if rm else "response")
    shape = model_shape(model)
    layers = parse_layers(args.layers, shape.layers)
    config = describe_base(SwiftConfig(shape.hidden_size, layers, position=position, region=region), model, tokenizer)
    groups = group_by_question(rollouts)
    chosen = [rollout for group in islice(groups.values(), args.questions) for rollout in group]
    check_sampled_by(chosen, model)
    summaries, gate = read_states(
        model, tokenizer, chosen, config, rm, batch_size=args.batch_size,
        max_bytes=int(args.max_gib * 2**30) if args.max_gib else None, progress=watched(),
    )  # fmt: skip
    found = probing.probe(summaries, gate, folds=args.folds, seed=args.seed, progress=watched())
    known = {"base_model": config.base_model, "position": position, "region": region, "questions_left_out": 0}
    if args.questions is not None:
        known["questions_left_out"] = max(0, len(groups) - args.questions)
    if args.out:
        write_whole(args.out, json.dumps({**known, **found.to_dict(POINTS)}, ensure_ascii=False) + "\n")
    return Result(probing.format_probe(found), {**known, **found.to_dict()})
