"""A comparison as text tables for a terminal."""

from __future__ import annotations

from swift_rm.evaluation.intervals import Interval, percent, plain
from swift_rm.evaluation.rule_comparison import Comparison
from swift_rm.evaluation.rule_outcome import ChosenResponse
from swift_rm.files.text import aligned, counted, printable, shortened

WIDTH = 28  # of a question's id and of an answer


def format_comparison(comparison: Comparison, show: int) -> str:
    """Return the figures, and at most ``show`` of the questions where the two disagree."""
    sentences = [[sentence] for sentence in notes(comparison)]
    blocks = [_sides(comparison), sentences, _table(comparison), _by_k(comparison), _disagreements(comparison, show)]
    return "\n\n".join(aligned(block) for block in blocks)


def notes(comparison: Comparison) -> list[str]:
    """Return what there is to know of the figures, a sentence each."""
    matched, a, b, table = comparison.matched, comparison.a, comparison.b, comparison.table
    questions = len(matched.names)
    of = questions * matched.n
    same = {0: "A and B answered the same questions with other responses.", of: "A and B have the same responses."}
    some = f"{matched.shared} of the {of} responses of B are responses of A too."
    found = [f"{counted(questions, 'question')} x {counted(matched.n, 'response')}. {same.get(matched.shared, some)}"]
    for name, side, only in (("A", a, matched.only_a), ("B", b, matched.only_b)):
        if only:
            found.append(f"Left out: {counted(only, 'question')} only in {name}, {printable(side.file)}.")
        if side.unscored:
            verbs = ("has", "is") if side.unscored == 1 else ("have", "are")
            lacking = f"{counted(side.unscored, 'response')} of {name} {verbs[0]} no score to go by"
            found.append(f"{lacking} and {verbs[1]} never chosen.")
    if questions == 1:
        found.append("One question has no interval to speak of: a resample of it is that question again.")
    if table.parted:
        counts = f"{counted(table.parted, 'question')} {'counts' if table.parted == 1 else 'count'} in parts"
        found.append(f"{counts}, being neither right nor wrong: a tie, broken uniformly, or an answer graded both ways.")
    for k, later in comparison.lead_changes:
        found.append(f"The lead changes between k = {k} and k = {later}.")
    return found


def outcome(value: float) -> str:
    """Return a question's value in words: right, wrong, or the share."""
    return {1.0: "right", 0.0: "wrong"}.get(value, f"{100 * value:.0f} % right")


def _sides(comparison: Comparison) -> list[list[str]]:
    at_n, aurocs = comparison.by_k[-1], comparison.auroc_within
    rows = [["", "file", "rule", f"accuracy of {at_n.k} (%)", "AUROC within questions", "tokens a question"]]
    for name, side, accuracy, auroc in (("A", comparison.a, at_n.a, aurocs.a), ("B", comparison.b, at_n.b, aurocs.b)):
        rows.append(
            [name, shortened(printable(side.file), WIDTH), side.rule, percent(accuracy), _or_dash(auroc), f"{side.tokens:.1f}"]
        )
    spent = f"{comparison.a.tokens - comparison.b.tokens:+.1f}"
    return [*rows, ["A - B", "", "", percent(at_n.difference, "+"), _or_dash(aurocs.difference), spent]]


def _table(comparison: Comparison) -> list[list[str]]:
    table = comparison.table
    return [
        ["questions", "B right", "B wrong"],
        ["A right", _count(table.both_right), _count(table.only_a)],
        ["A wrong", _count(table.only_b), _count(table.both_wrong)],
    ]


def _by_k(comparison: Comparison) -> list[list[str]]:
    rows = [[str(point.k), percent(point.a), percent(point.b), percent(point.difference, "+")] for point in comparison.by_k]
    return [["accuracy (%) of k", "A", "B", "A - B (points)"], *rows]


def _disagreements(comparison: Comparison, show: int) -> list[list[str]]:
    found = comparison.disagreements
    if not found[:show]:
        return [[f"A and B disagree on {counted(len(found), 'question')}."]]
    rows = [[f"{len(found)} disagreements", "A answers", "", "reward", "B answers", "", "reward"]]
    for one in found[:show]:
        rows.append([shortened(printable(comparison.matched.names[one.question]), WIDTH), *_cells(one.a), *_cells(one.b)])
    if len(found) > show:
        rows.append([f"and {len(found) - show} more", *[""] * 6])
    return rows


def _cells(choice: ChosenResponse) -> list[str]:
    answer = "-" if choice.answer is None else shortened(printable(choice.answer), WIDTH)
    return [answer, outcome(choice.value), "-" if choice.reward is None else f"{choice.reward:.2f}"]


def _or_dash(interval: Interval | None) -> str:
    return "-" if interval is None else plain(interval)


def _count(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
