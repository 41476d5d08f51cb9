"""An evaluation as text tables for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swift_rm.evaluation.intervals import percent, plain
from swift_rm.files.text import aligned, counted
from swift_rm.selection.rule_table import MAIN_IN_TABLES

if TYPE_CHECKING:
    from swift_rm.evaluation.evaluate import Evaluation

CURVES = (*MAIN_IN_TABLES, "majority", "oracle")


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
