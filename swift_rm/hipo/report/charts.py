"""The charts of a run over its training steps, each from the figures of the log that it names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from swift_rm.files.text import shortened, visible
from swift_rm.hipo.report.run_findings import LEAK
from swift_rm.hipo.report.run_log import History
from swift_rm.hipo.report.step_picture import LOOKS, Axis, Line, running_means, step_picture, thinned, window
from swift_rm.report.plots.chart import Cell, Chart

LEVELS = len(LOOKS) - 1  # difficulties drawn beside the whole


@dataclass(frozen=True)
class Plan:
    """What a chart shows: its title, figures of the log by their labels, its axis, and how to get what it needs.

    ``by`` is a figure that was logged by difficulty too, each of which is a line.
    """

    title: str
    figures: Mapping[str, str]
    axis: Axis
    how: str = "HiPOTrainer logs it at each step"
    by: str | None = field(default=None)


PLANS: Mapping[str, Plan] = {
    "accuracy": Plan(
        "Accuracy", {"all": "hipo/accuracy"}, Axis("accuracy (%)", share=True), "it needs labels", by="hipo/accuracy"
    ),
    "tokens": Plan(
        "Tokens of a response, by part",
        {"all": "hipo/tokens", "judge": "hipo/tokens_judge", "think": "hipo/tokens_think", "answer": "hipo/tokens_answer"},
        Axis("tokens", from_zero=True),
    ),
    "think_rate": Plan(
        "Share of responses that think",
        {"all": "hipo/think_rate"},
        Axis("think-on (%)", share=True),
        "it needs responses that choose a mode",
        by="hipo/think_rate",
    ),
    "think_off_answers": Plan(
        "Length of think-off answers",
        {"mean": "hipo/think_off_answer_tokens", "longest": "hipo/think_off_answer_tokens_max"},
        Axis("tokens after the marker", from_zero=True),
        "it needs think-off responses",
    ),
    "leak": Plan(
        "Think-off answers with leaked reasoning",
        {"leaked": "hipo/leak_share"},
        Axis("of think-off answers (%)", share=True, from_zero=True, reference=LEAK, meaning="alarm"),
        "it needs well-formed responses of both modes in a step",
    ),
    "oscillation": Plan(
        "Change of the think-on share from step to step",
        {"change": "hipo/think_rate_oscillation"},
        Axis("points, mean of 10 steps", share=True, from_zero=True),
        "it needs at least two steps",
    ),
    "format": Plan(
        "Well-formed and cut responses",
        {"well formed": "hipo/format", "cut at the limit": "hipo/cut"},
        Axis("of the responses (%)", share=True),
    ),
    "kl": Plan("KL divergence from the reference", {"KL": "kl"}, Axis("KL", from_zero=True), "TRL logs it where beta is above 0"),
    "drift_auroc": Plan(
        "How well the reward ranks a question's responses",
        {"reward": "hipo/drift_auroc"},
        Axis("AUROC within questions", reference=0.5, meaning="chance"),
        "it needs hidden-state rewards and some labels",
    ),
    "hacking_gap": Plan(
        "Probability of the reward model less true accuracy",
        {"gap": "hipo/hacking_gap"},
        Axis("difference (points)", share=True, reference=0.0, meaning="none"),
        "it needs hidden-state rewards and some labels",
    ),
}


def charts(history: History) -> list[Chart]:
    """Return all charts for which the log has figures; raises ImportError without matplotlib."""
    return [_chart(history, name, plan) for name, plan in PLANS.items() if _logged(history, plan)]


def left_out(history: History) -> list[str]:
    """Return a sentence for each chart for which the log has no figures, with what it takes."""
    return [
        f'No chart "{plan.title}": the log has no {" or ".join(plan.figures.values())}; {plan.how}.'
        for plan in PLANS.values()
        if not _logged(history, plan)
    ]


def _logged(history: History, plan: Plan) -> bool:
    return any(key in history.series for key in plan.figures.values())


def _chart(history: History, name: str, plan: Plan) -> Chart:
    keys = [(label, key) for label, key in plan.figures.items() if key in history.series]
    levels = history.levels(plan.by) if plan.by else []
    keys += [(shortened(visible(level), 14), f"{plan.by}/{level}") for level in levels[:LEVELS]]
    lines, sizes = [], []
    for label, key in keys:
        points, size = thinned(history.series[key])
        lines.append(Line(label, points, running_means(points.values)))
        sizes.append(size)
    said = "; ".join(f"{label} {_ends(history, key, plan.axis)}" for label, key in keys)
    alt = f"First tenth of the steps to the last: {said}. {_how_drawn(lines[0], sizes[0])}"
    if len(levels) > LEVELS:
        alt += f" Drawn are the first {LEVELS} of {len(levels)} difficulties."
    header = ("line", "step", "value", "running mean")
    rows: list[tuple[Cell, ...]] = [
        (one.name, *row) for one in lines for row in zip(one.points.steps, one.points.values, one.smooth, strict=True)
    ]
    return Chart(name, plan.title, alt, header, tuple(rows), step_picture(lines, plan.axis))


def _ends(history: History, key: str, axis: Axis) -> str:
    before, after = history.series[key].ends()
    if axis.share:
        return f"{100 * before:.1f} to {100 * after:.1f} {'points' if 'points' in axis.name else '%'}".replace("-", "\u2212")
    return f"{before:.3g} to {after:.3g}".replace("-", "\u2212")


def _how_drawn(first: Line, size: int) -> str:
    """Say what points and lines are, of the chart's first line; the others may lack a step."""
    width = window(len(first.points.values))
    each = "a logged step" if size == 1 else f"the mean of {size} logged steps"
    if width == 1:
        return f"Each point of a line is {each}."
    return f"Each faint point is {each}; lines are running means of {width} of them, half before and half after."
