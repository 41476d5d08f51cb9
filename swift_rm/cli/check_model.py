"""`swift-rm check-model`: that what is read of a model is what transformers has."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict

from swift_rm.cli.arguments import MODEL_HELP, Commands, add_loading, command
from swift_rm.cli.loading import load
from swift_rm.cli.output import Result


def add_parser(commands: Commands) -> None:
    """Add the command and its arguments."""
    parser = command(commands, "check-model", "check that this model's hidden states are captured exactly")
    parser.add_argument("model", help=MODEL_HELP)
    add_loading(parser)


def run(args: Namespace) -> Result:
    """Check the capture of hidden states on a model."""
    from swift_rm.parity.capture_check import check_model as run_checks

    model, tokenizer = load(args)
    rows = run_checks(model, tokenizer)
    width = max(len(row.name) for row in rows)
    text = "\n".join(f"{'ok  ' if row.passed else 'FAIL'}  {row.name:{width}}  {row.detail}" for row in rows)
    return Result(text, [asdict(row) for row in rows], ok=all(row.passed for row in rows))
