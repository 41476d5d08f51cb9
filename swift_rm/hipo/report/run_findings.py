"""What became of a run, in sentences: its figures in the first and the last tenth of the steps, and its alarms."""

from __future__ import annotations

import re
from statistics import fmean

from swift_rm.files.text import counted, shortened, visible
from swift_rm.hipo.report.run_log import History, Points, run_log

__all__ = ["History", "alarms", "ends_table", "run_log", "sentences"]

LEAK, COLLAPSE, GAP = 0.05, 0.02, 0.1  # what the alarms go off above, within of 0 and 1, and above the growth of

NAMES = {
    "hipo/accuracy": "accuracy (%)",
    "hipo/tokens": "tokens a response",
    "hipo/tokens_judge": "tokens up to the mode marker",
    "hipo/tokens_think": "tokens of thinking",
    "hipo/tokens_answer": "tokens of the answer",
    "hipo/think_rate": "think-on (%)",
    "hipo/think_rate_oscillation": "change of the think-on share from step to step (points)",
    "hipo/think_off_answer_tokens": "tokens after the marker of think-off",
    "hipo/leak_share": "leaked think-off answers (%)",
    "hipo/format": "well formed (%)",
    "hipo/cut": "cut at the length limit (%)",
    "kl": "KL to the reference",
    "hipo/drift_auroc": "AUROC of the reward within questions",
    "hipo/hacking_gap": "probability less accuracy (points)",
}


def sentences(history: History) -> list[str]:
    """Return the answer first: accuracy, tokens and think rate, each in the first and the last tenth of the logged steps."""
    first, last, count = history.steps
    where = f"From the first tenth to the last of {counted(count, 'logged step')} ({first} to {last}):"
    if count == 1:
        where = f"The log has one step only ({first}), so nothing can be said of changes:"
    said = []
    if points := history.series.get("hipo/accuracy"):
        said.append(f"accuracy {_change(points, 100, ' %')}")
    if points := history.series.get("hipo/tokens"):
        before, after = points.ends()
        share = f" ({100 * (after / before - 1):+.0f} %)" if before > 0 and count > 1 else ""
        said.append(f"tokens a response {_change(points, 1, '')}{share}")
    if points := history.series.get("hipo/think_rate"):
        said.append(f"think-on {_change(points, 100, ' %')} of the responses")
    found = [_minus(f"{where} {'; '.join(said)}.")] if said else []
    levels = history.levels("hipo/think_rate")
    if levels:
        ends = [(level, history.series[f"hipo/think_rate/{level}"].ends()[1]) for level in levels]
        named = ", ".join(f"{shortened(visible(level), 40)} {100 * rate:.0f} %" for level, rate in ends[:8])
        more = f", and {len(ends) - 8} more" if len(ends) > 8 else ""
        found.append(f"Think-on by difficulty in the last tenth: {named}{more}.")
    skipped = history.series.get("hipo/skipped")
    if skipped and sum(skipped.values):
        found.append(f"Responses that had no reward and took no part: {sum(skipped.values) / len(skipped.values):.3g} a step.")
    return found


def alarms(history: History) -> list[str]:
    """Return a sentence for each thing that went wrong; if nothing did, one that says what was looked at."""
    found, watched = [], []
    if points := history.series.get("hipo/leak_share"):
        watched.append("reasoning in think-off answers")
        tenths = _tenths(points)
        worst = max(tenths, key=lambda one: one[1])
        if worst[1] > LEAK:
            now = 100 * points.ends()[1]
            found.append(
                f"Reasoning leaks: around step {worst[0]}, {100 * worst[1]:.1f} % of the think-off answers were longer than "
                f"an answer after thinking has need to be (the alarm is at {100 * LEAK:.0f} %), in the last tenth {now:.1f} %; "
                f"length_cap punishes them."
            )
    if points := history.series.get("hipo/think_rate"):
        watched.append("collapse into one mode")
        rate = points.ends()[1]
        if rate < COLLAPSE or rate > 1 - COLLAPSE:
            mode = "think-off" if rate < COLLAPSE else "think-on"
            found.append(
                f"The choice collapsed: in the last tenth {100 * rate:.1f} % of the responses think, so that nearly all are "
                f"{mode} and the modes are no longer compared; forced_modes keeps both."
            )
    if points := history.series.get("hipo/hacking_gap"):
        watched.append("a reward model that is gamed")
        before, after = points.ends()
        if after - before > GAP:
            found.append(
                f"The reward model is gamed: its probability less the true accuracy grew from {100 * before:+.1f} to "
                f"{100 * after:+.1f} points; refresh it online, or score with the frozen model."
            )
    if found:
        return [_minus(sentence) for sentence in found]
    return [f"No alarm: looked for {', '.join(watched)}."] if watched else ["Nothing that alarms watch was logged."]


def ends_table(history: History) -> list[tuple[str, str, str, str]]:
    """Return what, first tenth, last tenth and their difference, in the units of the names, for the figures that were logged."""
    rows = []
    for key, name in NAMES.items():
        if points := history.series.get(key):
            scale, digits = (100, 1) if name.endswith(("(%)", "(points)")) else (1, 1 if "tokens" in name else 3)
            before, after = (scale * end for end in points.ends())
            change = _minus(f"{after - before:+z.{digits}f}")
            rows.append((name, _minus(f"{before:z.{digits}f}"), _minus(f"{after:z.{digits}f}"), change))
    return rows


def _tenths(points: Points) -> list[tuple[int, float]]:
    """Return the middle step and the mean of each tenth of the points: single steps are too noisy for an alarm."""
    size = -(-len(points.values) // 10)
    cut = [slice(start, start + size) for start in range(0, len(points.values), size)]
    return [(points.steps[one][len(points.steps[one]) // 2], fmean(points.values[one])) for one in cut]


def _change(points: Points, scale: float, unit: str) -> str:
    before, after = (scale * end for end in points.ends())
    return f"{before:.1f} to {after:.1f}{unit}" if len(points.values) > 1 else f"{after:.1f}{unit}"


def _minus(text: str) -> str:
    return re.sub(r"(?<!\w)-(?=[0-9])", "\u2212", text)
