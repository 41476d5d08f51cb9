"""`swift-rm evaluate`: figures of scored rollouts as a table, JSON, a page, charts, and in a reward model's folder."""

from __future__ import annotations

import json
import re
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swift_rm.cli.arguments import Commands, command, path

if TYPE_CHECKING:
    from swift_rm.cli.output import Result
    from swift_rm.report.question_browser import Shown

REPORT = "report.json"  # of the figures in --out, beside the charts


def add_parser(commands: Commands) -> None:
    """Add the command and its arguments."""
    parser = command(commands, "evaluate", "measure rewards and baselines on graded, scored rollouts")
    parser.add_argument("rollouts", nargs="+", help="scored rollout files (JSONL)")
    parser.add_argument("-n", type=int, help="read the first n responses of each question")
    parser.add_argument("--deepconf-window", type=int, default=2048, help="tokens of DeepConf's window (default 2048)")
    parser.add_argument("--reward-model", help="folder whose model card and evaluation-results files get these figures")
    parser.add_argument("--dataset", metavar="ID[:TASK]", help="what the Hub calls the questions (default: the file's name)")
    parser.add_argument(
        "--report", metavar="FILE", type=path, help="HTML page to write: charts, tables, questions with their candidates"
    )
    parser.add_argument(
        "--out", metavar="DIR", type=path, help="folder for every chart as SVG and CSV, and the figures as report.json"
    )
    parser.add_argument("--probe", metavar="FILE", type=path, help="what `probe --out` wrote, for the chart of layers")
    parser.add_argument(
        "--label-curve", metavar="FILE", type=path, help="what `train --label-curve` wrote, for the chart of label efficiency"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip-bad-lines", action="store_true")


def run(args: Namespace) -> Result:
    """Measure rewards and baselines, and write what was asked for.

    What cannot be written or read is said before the work: OSError for a place to write, ValueError for what was given.
    """
    from swift_rm.cli.loading import read_rollout_files
    from swift_rm.cli.output import Result, watched
    from swift_rm.evaluation.evaluate import evaluate as evaluate_rollouts
    from swift_rm.evaluation.evaluate import graded_groups
    from swift_rm.files.atomic_write import write_whole
    from swift_rm.report.evaluation_table import format_table
    from swift_rm.reward.identity import short_name
    from swift_rm.reward.reward_model import SwiftRewardModel

    start = time.monotonic()
    dataset = dataset_of(args)
    _check_places(args)
    beside = _beside(args)
    rm = SwiftRewardModel.from_pretrained(args.reward_model) if args.reward_model else None
    rollouts = read_rollout_files(args)
    evaluation = evaluate_rollouts(rollouts, n=args.n, seed=args.seed, deepconf_window=args.deepconf_window, progress=watched())
    data = {**evaluation.to_dict(), "seconds": round(time.monotonic() - start, 2), **beside}
    text = format_table(evaluation).rstrip("\n")
    if args.out:  # the figures first: whatever cannot be drawn, they are there
        write_whole(Path(args.out) / REPORT, json.dumps(data, indent=2) + "\n")
    if args.report:
        from swift_rm.report.report_page import About, render_report

        about = About([Path(path).name for path in args.rollouts], short_name(args.reward_model) if args.reward_model else None)
        page, shown = render_report(data, graded_groups(rollouts, args.n), about)
        write_whole(args.report, page)
        text += f"\n\nreport  {args.report} ({len(page.encode()) / 1e6:.1f} MB): {said_of(shown)}"
    if args.out:
        from swift_rm.report.plots.evaluation_charts import charts

        drawn = charts(data)
        for chart in drawn:
            chart.save(args.out)
        text += f"\n{'' if args.report else chr(10)}out     {args.out}: {REPORT}, and {len(drawn)} charts as SVG and CSV"
    if rm is not None:
        told = {**data, "dataset": dataset, "date": date.today().isoformat()}
        rm.with_evaluation(told).save_pretrained(args.reward_model)
    data |= {name: value for name in ("report", "out") if (value := getattr(args, name))}
    return Result(text, data)


def dataset_of(args: Namespace) -> dict[str, str]:
    """Return what the Hub is to call the questions, from ``--dataset ID[:TASK]`` or the first file's name.

    Raises ValueError for a name that the Hub does not allow.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined,unused-ignore]

    from swift_rm.reward.evaluation_results import hub_name

    if args.dataset is None:
        return {"id": f"local/{hub_name(Path(args.rollouts[0]).stem)}", "task": "default"}
    if not args.reward_model:
        raise ValueError(f"--dataset {args.dataset!r} is for a reward model's evaluation results: give --reward-model, too")
    name, colon, task = args.dataset.partition(":")
    form = f"--dataset must be ID or ID:TASK, e.g. openai/gsm8k:main, got {args.dataset!r}"
    if not name or (colon and not task):
        raise ValueError(form)
    if colon and not re.fullmatch(r"[\w./-]+", task, re.ASCII):
        raise ValueError(f"{form}: a task's name is of letters, digits, '_', '-', '.' and '/'")
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise ValueError(f"{form}: an id is NAME or OWNER/NAME of at most 96 letters, digits, '_', '-' and '.' each") from None
    return {"id": name, "task": task or "default"}


def said_of(shown: Shown) -> str:
    """Say in a line what of the questions is on the page."""
    from swift_rm.files.text import counted

    there = f"{counted(shown.questions, 'question')} with {counted(shown.candidates, 'candidate')}"
    said = f"{there}, {shown.shaded:,} of them with shaded tokens"
    left_out = {
        "questions": shown.questions_left_out,
        "candidates": shown.candidates_left_out,
        "characters": shown.characters_left_out,
    }
    missing = ", ".join(f"{count:,} {name}" for name, count in left_out.items() if count)
    return f"{said}; left out for its size: {missing}" if missing else said


def _check_places(args: Namespace) -> None:
    """Raise what writing would raise in the end, before anything is read."""
    from swift_rm.files.atomic_write import check_writable

    if args.reward_model and not Path(args.reward_model).is_dir():
        raise ValueError(f"--reward-model {args.reward_model} is not a folder, whose card could get the table")
    read = [*args.rollouts, args.probe, args.label_curve]
    if args.reward_model:
        check_writable(Path(args.reward_model) / "config.json")
    if args.report:
        check_writable(args.report, read)
    if args.out:
        from swift_rm.report.plots.evaluation_charts import CHARTS

        if Path(args.out).exists() and not Path(args.out).is_dir():
            raise NotADirectoryError(f"--out {args.out} is a file, not a folder for the charts")
        for name in (REPORT, *(f"{name}.{kind}" for name in CHARTS for kind in ("svg", "csv"))):
            check_writable(Path(args.out) / name, [*read, args.report])
    if args.report or args.out:
        from swift_rm.report.plots.chart import drawing

        with drawing():  # without matplotlib, say so before the work
            pass


def _beside(args: Namespace) -> dict[str, Any]:
    """Read what ``--probe`` and ``--label-curve`` add to the report; raise ValueError that names a file that does not fit."""
    from swift_rm.report.plots.evaluation_json import interval, label_figures, number, objects

    def check_layers(report: Mapping[str, Any]) -> None:
        for place, row in enumerate(objects(report, "layers", ("layer", "mean", "last"))):
            number(row["layer"], f"layers[{place}].layer")
            for state in ("mean", "last"):
                interval(row[state], f"layers[{place}].{state}")

    found: dict[str, Any] = {}
    if args.probe:
        found["layers"] = _read_part(args.probe, "layers", "probe --out", check_layers)
    if args.label_curve:
        found["label_efficiency"] = _read_part(args.label_curve, "label_efficiency", "train --label-curve", label_figures)
    return found


def _read_part(path: str, key: str, writer: str, check: Callable[[Mapping[str, Any]], object]) -> Any:
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(report, dict) or not report.get(key):
            raise ValueError(f'it has no "{key}"')
        check(report)
    except ValueError as error:
        raise ValueError(f"{path} is not what `swift-rm {writer}` writes: {error}") from error
    return report[key]
