"""`swift-rm hipo`: teach a model when to think, step by step; every step but the last is a module of its own."""

from __future__ import annotations

from argparse import Namespace

from swift_rm.cli import hipo_data, hipo_sft, hipo_train
from swift_rm.cli.arguments import Commands, command, path
from swift_rm.cli.hipo_shared import latest
from swift_rm.cli.output import Result


def add_parser(commands: Commands) -> None:
    """Add the command and its steps, in the order in which they are taken."""
    hipo = commands.add_parser("hipo", help="teach a model when to think", description="Teach a model when to think, in steps.")
    steps = hipo.add_subparsers(dest="step", required=True, metavar="step")
    for step in (hipo_data, hipo_sft, hipo_train):
        step.add_parser(steps)
    report = command(steps, "report", "write a page with the charts of a run")
    report.add_argument("folder", help="what `hipo train --out` wrote, or a checkpoint in it")
    report.add_argument("--out", required=True, type=path, help="HTML file to write")


def resumes(args: Namespace) -> bool:
    """Tell whether a run that was stopped goes on when it is started again."""
    return bool(args.step == "data")


def run(args: Namespace) -> Result:
    """Take one step of the recipe."""
    return {"data": hipo_data.run, "sft": hipo_sft.run, "train": hipo_train.run, "report": write_report}[args.step](args)


def write_report(args: Namespace) -> Result:
    """Write the page of a run."""
    from swift_rm.files.atomic_write import check_writable
    from swift_rm.hipo.report.run_findings import sentences
    from swift_rm.hipo.report.run_log import run_log
    from swift_rm.hipo.report.run_page import render_run

    history = run_log(args.folder)
    check_writable(args.out, [history.source])
    render_run(args.folder, args.out)
    said = sentences(history)
    return Result("\n".join([*said, f"report  {args.out}"]), {"out": args.out, "findings": said, **latest(history.series)})
