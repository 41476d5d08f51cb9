"""`swift-rm compare`: two reward models, or two rules, on the same questions, as tables, JSON and a page."""

from __future__ import annotations

import os
import sys
import time
from argparse import Namespace
from collections import Counter
from typing import TYPE_CHECKING

from swift_rm.cli.arguments import Commands, command, path
from swift_rm.selection.rule_table import DEFAULT_EVALUATED

if TYPE_CHECKING:
    from swift_rm.cli.output import Result
    from swift_rm.records.rollouts import Rollout


def add_parser(commands: Commands) -> None:
    """Add the command and its arguments."""
    parser = command(commands, "compare", "compare two reward models, or two rules, on the same questions")
    parser.add_argument("rollouts", nargs="+", metavar="FILE", help="one or two scored rollout files (JSONL)")
    parser.add_argument("--rules", nargs="+", metavar="RULE", help="one rule for both, or one for each (default swift_shrunk)")
    parser.add_argument("-n", type=int, help="read the first n responses of each question")
    parser.add_argument("--show", type=int, default=10, help="questions to list where the two disagree (default 10)")
    parser.add_argument("--report", metavar="FILE", type=path, help="HTML page to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip-bad-lines", action="store_true")


def run(args: Namespace) -> Result:
    """Compare two rules or two files, and write the page if it was asked for."""
    from swift_rm.cli.output import Result, watched
    from swift_rm.evaluation.paired_questions import match
    from swift_rm.evaluation.rule_comparison import compare as compare_sides
    from swift_rm.evaluation.rule_outcome import measure
    from swift_rm.report.compare_tables import format_comparison

    start = time.monotonic()
    files, rules = _sides(args)
    if args.report:
        from swift_rm.files.atomic_write import check_writable
        from swift_rm.report.plots.chart import drawing

        check_writable(args.report, files)
        with drawing():  # without matplotlib, say so before the work
            pass
    a = _read(files[0], args)
    b = a if _same(files) else _read(files[1], args)
    matched = match(a, b, args.n, files)
    side_a, side_b = (
        measure(groups, rule, file, seed=args.seed, progress=watched())
        for groups, rule, file in zip((matched.a, matched.b), rules, files, strict=True)
    )
    comparison = compare_sides(matched, side_a, side_b, seed=args.seed)
    data = {**comparison.to_dict(), "seconds": round(time.monotonic() - start, 2)}
    if args.report:
        from swift_rm.files.atomic_write import write_whole
        from swift_rm.report.compare_page import render

        write_whole(args.report, render(comparison, args.show))
        data["report"] = args.report
    return Result(format_comparison(comparison, args.show), data)


def _sides(args: Namespace) -> tuple[tuple[str, str], tuple[str, str]]:
    """Return the files and the rules of A and B; raise ValueError where there is nothing to compare."""
    from swift_rm.evaluation.rule_outcome import check_rule

    rules = args.rules or [DEFAULT_EVALUATED]
    for rule in rules:
        check_rule(rule)
    if len(args.rollouts) > 2 or len(rules) > 2:
        raise ValueError(f"two files and two rules at most, got {len(args.rollouts)} files and {len(rules)} rules")
    if args.show < 0:
        raise ValueError(f"--show must be 0 or more questions, got {args.show}")
    files = args.rollouts[0], args.rollouts[-1]
    pair = rules[0], rules[-1]
    if _same(files) and pair[0] == pair[1]:
        raise ValueError(f"nothing to compare: {files[0]} by {pair[0]} twice; give a second file, or --rules with two rules")
    return files, pair


def _same(files: tuple[str, str]) -> bool:
    return files[0] == files[1] or (all(map(os.path.exists, files)) and os.path.samefile(*files))


def _read(path: str, args: Namespace) -> list[Rollout]:
    from swift_rm.records.duplicate_responses import check_responses_once
    from swift_rm.records.rollouts import read_rollouts

    skipped: Counter[str] = Counter()
    rollouts = read_rollouts(path, skip_bad_lines=args.skip_bad_lines, skipped=skipped)
    if skipped:
        sys.stderr.write(f"swift-rm: skipped {skipped.total()} invalid lines of {path}\n")
    if not rollouts:
        raise ValueError(f"{path} holds no records")
    check_responses_once((path, rollout) for rollout in rollouts)
    return rollouts
