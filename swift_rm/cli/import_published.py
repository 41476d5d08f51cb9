"""`swift-rm import-published`: a checkpoint of the paper's code as a reward model."""

from __future__ import annotations

from argparse import Namespace

from swift_rm.cli.arguments import Commands, command
from swift_rm.cli.loading import parse_layers
from swift_rm.cli.output import Result, listing


def add_parser(commands: Commands) -> None:
    """Add the command and its arguments."""
    parser = command(commands, "import-published", "turn a checkpoint of the paper's code into a reward model")
    parser.add_argument("checkpoint", help="the .pt file")
    parser.add_argument("--layers", required=True, help="the layers it reads, e.g. 0-32")
    parser.add_argument("--hidden-size", type=int, required=True)
    parser.add_argument("--base-model", required=True, help="Hub id of the language model it was trained on")
    parser.add_argument("--out", required=True, help="folder of the reward model")


def run(args: Namespace) -> Result:
    """Turn a published checkpoint into a reward model folder."""
    from swift_rm.reward.reward_model import SwiftRewardModel

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
