"""What an evaluation says, in sentences: whether the rule beats the majority vote, and whether the reward can be trusted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from swift_rm.evaluation.intervals import paired_difference, percent, plain
from swift_rm.files.text import counted
from swift_rm.report.plots.evaluation_json import interval
from swift_rm.report.question_summary import QuestionSummary, probability

FEW = 30  # questions, below which a bootstrap interval is rough
UNLIKELY = 0.025  # the probability below which what is seen speaks against what was expected


def headline(data: Mapping[str, Any]) -> str:
    """Return the main figure: the default rule's accuracy and its difference to the majority vote."""
    accuracy, questions = data["accuracy"], data["questions"]
    of = f"Of {counted(questions, 'question')} with {counted(data['n'], 'response')} each,"
    vote = _share(accuracy["majority"])
    if "swift_shrunk" not in accuracy:
        return f"{of} a majority vote answers {vote} right. The records have no rewards; `swift-rm score` writes them."
    said = (
        f"{of} swift_shrunk, the default rule, answers {_share(accuracy['swift_shrunk'])} right; a majority vote answers {vote}."
    )
    difference = interval(data["paired"]["swift_shrunk-majority"], "paired")
    said += f" That is a difference of {_minus(percent(difference, '+'))} points"
    if questions == 1:
        return f"{said}; one question has no interval to speak of."
    if difference.low > 0:
        return f"{said}, above zero in the whole interval."
    return (
        f"{said}, below zero in the whole interval."
        if difference.high < 0
        else f"{said}: these questions do not tell the two apart."
    )


def findings(data: Mapping[str, Any], questions: Sequence[QuestionSummary]) -> list[str]:
    """Return what speaks for and against the reward, a sentence or two each; nothing without rewards."""
    main = questions[0].main
    found = [*_ranking(data), *_calibration(data), *_unrewarded(questions)] if main != "majority" else []
    found += _parted(questions)
    found += _chosen(questions) if main != "majority" else []
    missed, lost = (sum(one.kind == kind for one in questions) for kind in ("missed", "lost"))
    found.append(
        f"Of {counted(len(questions), 'question')} {main} missed {missed} for which a right candidate was there; "
        f"on {lost} every candidate is wrong."
    )
    found += _peak(data)
    if data["unparsable"]:
        of = counted(data["questions"] * data["n"], "response")
        found.append(f"{data['unparsable']:,} of {of} {_have(data['unparsable'])} no answer, and cannot be elected.")
    if 1 < data["questions"] < FEW:
        found.append(f"Intervals are bootstrapped over questions, and rough for only {data['questions']} of them.")
    return found


def _ranking(data: Mapping[str, Any]) -> list[str]:
    if "swift" not in (within := data["auroc_within"]):
        return []
    swift, *rival = (plain(interval(within[name], name)) for name in ("swift", "mean_logprob") if name in within)
    than = f", mean log-probability with {rival[0]}" if rival else ""
    return [f"The reward ranks a right response above a wrong one of the same question with AUROC {swift}{than}; chance is 0.5."]


def _calibration(data: Mapping[str, Any]) -> list[str]:
    if not data["ece"] or not data["brier"]:
        return []
    error, brier = plain(interval(data["ece"], "ece")), plain(interval(data["brier"], "brier"))
    return [f"Its probabilities of being right are off by {error} on average (calibration error); their Brier score is {brier}."]


def _unrewarded(questions: Sequence[QuestionSummary]) -> list[str]:
    candidates = [one for question in questions for one in question.candidates]
    lacking = sum(one.reward is None or math.isnan(one.reward) for one in candidates)
    if not lacking:
        return []
    known = sum(math.isfinite(probability(one)) for one in candidates)
    rest = f"; the calibration figures are of {counted(known, 'response')}" if known < len(candidates) else ""
    return [
        f"{lacking:,} of {counted(len(candidates), 'response')} {_have(lacking)} no reward: such a response ranks below all "
        f"others and is never chosen, which lowers AUROC and swift_best where it is right{rest}."
    ]


def _parted(questions: Sequence[QuestionSummary]) -> list[str]:
    parted = sum(one.parted for one in questions)
    if not parted:
        return []
    return [
        f"{counted(parted, 'question')} {_have(parted)} an answer whose responses are graded both ways: figures and charts count "
        "the share of them that is right, but the browser, and what is said here of choices, goes by the one response chosen."
    ]


def _chosen(questions: Sequence[QuestionSummary]) -> list[str]:
    main = questions[0].main
    places = [(one, place) for one in questions if (place := one.choices[main]) is not None]
    chances = [(one, chance) for one, place in places if math.isfinite(chance := probability(one.candidates[place]))]
    if not chances:
        return []
    expected, right = [chance for _, chance in chances], [float(one.is_right(main)) for one, _ in chances]
    if len(chances) == 1:
        return [
            f"It gives the one response that {main} chose a probability of {_mean(expected)} of being right, and it is "
            f"{'right' if right[0] else 'wrong'}: one question does not tell whether it is too sure or too modest."
        ]
    surplus = paired_difference(expected, right)
    verdict = "as promised, as far as these questions tell"
    if len(chances) < FEW:
        verdict = "so few questions do not tell whether it is too sure or too modest"
    elif not _likely(expected, right):
        if surplus.high < 0:
            verdict = "it is too modest about its choices"
        if surplus.low > 0:
            verdict = "it is too sure of its choices, as the highest of many rewards are likelier too high"
    return [
        f"Of the responses that {main} chose it expects {_mean(expected)} to be right, and {_mean(right)} are: {verdict} "
        f"(a difference of {_minus(percent(surplus, '+'))} points)."
    ]


def _likely(expected: Sequence[float], right: Sequence[float]) -> bool:
    """Tell whether all are right, or all wrong, and might well be: a bootstrap of what is all alike sees no chance in it."""
    if len(set(right)) > 1:
        return False
    return math.prod(chance if right[0] else 1 - chance for chance in expected) >= UNLIKELY


def _mean(shares: Sequence[float]) -> str:
    return f"{100 * sum(shares) / len(shares):.1f} %"


def _peak(data: Mapping[str, Any]) -> list[str]:
    curve = data["curves"].get("swift_best", [])
    if not curve:
        return []
    top, last = max(curve, key=lambda point: point["value"]), curve[-1]
    if top["k"] == last["k"] or top["value"] - last["value"] < 0.001:
        return []
    best, end = (f"{100 * point['value']:.1f} %" for point in (top, last))
    return [
        f"The highest reward of k responses is right most often at k = {top['k']} ({best}), and at k = {last['k']} in {end}: "
        f"of more responses an outlier wins more often. swift_shrunk is made to resist this."
    ]


def _have(count: int) -> str:
    return "has" if count == 1 else "have"


def _minus(figures: str) -> str:
    return figures.replace("-", "\u2212")


def _share(figure: Mapping[str, float | None]) -> str:
    value, bounds = percent(interval(figure, "accuracy")).split(" ", 1)
    return f"{value} % {bounds}"
