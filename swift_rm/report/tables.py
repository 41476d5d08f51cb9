"""Text tables for a terminal: an evaluation, and aligned rows of any kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from swift_rm.evaluation.evaluate import Evaluation
    from swift_rm.evaluation.intervals import Interval

CURVES = ("swift_best", "swift_vote", "swift_shrunk", "majority", "oracle")


def format_table(evaluation: Evaluation) -> str:
    """Return the rules with their accuracy in % and within-question AUROC, the differences, and the curves over k.

    "[low, high]" is the bootstrap interval. A rule that chooses by no single score has no AUROC. The curves are at the
    powers of two up to N, and at N.
    """
    return "\n\n".join(aligned(block) for block in _blocks(evaluation)) + "\n"


def _blocks(evaluation: Evaluation) -> list[list[list[str]]]:
    aurocs = {("swift_best" if name == "swift" else name): row for name, row in evaluation.auroc_within.items()}
    summary = [
        [
            f"{counted(evaluation.questions, 'question')} x {counted(evaluation.n, 'response')} "
            f"of {evaluation.tokens_per_response:.1f} tokens"
        ],
        [f"{counted(evaluation.mixed_questions, 'question')} with both right and wrong responses"],
        [f"{counted(evaluation.unparsable, 'response')} without an answer"],
    ]
    rows = [["rule", f"accuracy of {evaluation.n} (%)", "AUROC within questions"]]
    for rule, interval in evaluation.accuracy.items():
        rows.append([rule, percent(interval), plain(aurocs[rule]) if rule in aurocs else "-"])
    blocks = [summary, rows]
    if evaluation.paired:
        blocks.append([["difference", "points"], *([name, percent(d)] for name, d in evaluation.paired.items())])
    if evaluation.brier and evaluation.ece:
        header = ["probabilities", "Brier score", "calibration error"]
        blocks.append([header, ["swift", plain(evaluation.brier), plain(evaluation.ece)]])
    sizes = [2**power for power in range(evaluation.n.bit_length())]
    sizes += [evaluation.n] if sizes[-1] != evaluation.n else []
    curves = [["accuracy (%) of k", *map(str, sizes)]]
    for rule in CURVES:
        if rule in evaluation.curves:
            curves.append([rule, *(f"{100 * evaluation.curves[rule][k - 1].value:.1f}" for k in sizes)])
    return [*blocks, curves]


def counted(count: int, what: str) -> str:
    """Return a number of things, the name of which takes an s in the plural."""
    return f"{count:,} {what}{'s' * (count != 1)}"


def percent(interval: Interval, sign: str = "") -> str:
    """Return a share with its bounds in %; with the sign "+", what is above zero shows it."""
    return f"{100 * interval.value:{sign}z.1f} [{100 * interval.low:{sign}z.1f}, {100 * interval.high:{sign}z.1f}]"


def plain(interval: Interval) -> str:
    """Return a figure with its bounds."""
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Align the first column left, the others right; a header line is ruled off where there are columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        right = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *right]).rstrip())
    if len(widths) > 1:
        lines.insert(1, "-" * (sum(widths) + 2 * len(widths) - 2))
    return "\n".join(lines)
