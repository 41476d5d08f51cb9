"""The responses in each mode question by question, and the questions themselves as the records hold them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from swift_rm.hipo.response.template import Mode
from swift_rm.records.rollouts import Rollout, group_by_question
from swift_rm.tasks.task import Question


def group_modes(rollouts: Mapping[Mode, Sequence[Rollout]]) -> dict[str, dict[Mode, list[Rollout]]]:
    """Return each question's responses by mode; raise ValueError if it lacks a mode."""
    if not rollouts or set(rollouts) - {"on", "off"}:
        raise ValueError(f"expected rollouts of the modes 'on' and 'off', or one of them, got {sorted(map(str, rollouts))}")
    by_mode = {mode: group_by_question(group) for mode, group in rollouts.items()}
    for mode, groups in by_mode.items():
        if not groups:
            raise ValueError(f"there are no think-{mode} responses")
        for other, others in by_mode.items():
            lacking = next((question_id for question_id in groups if question_id not in others), None)
            if lacking is not None:
                raise ValueError(
                    f"question {lacking!r} has think-{mode} but no think-{other} responses: sample the same ones in both modes"
                )
    first = next(iter(by_mode.values()))
    return {question_id: {mode: groups[question_id] for mode, groups in by_mode.items()} for question_id in first}


def questions_of(groups: Mapping[str, Mapping[Mode, Sequence[Rollout]]], given: Iterable[Question] | None) -> dict[str, Question]:
    """Return the questions that were given, or those of the rollouts; raise ValueError if one is not there, or ambiguous."""
    if given is not None:
        known = {question.question_id: question for question in given}
        lacking = next((question_id for question_id in groups if question_id not in known), None)
        if lacking is not None:
            raise ValueError(f"question {lacking!r} of the rollouts is not among the {len(known)} questions given")
        return known
    asked = {}
    for question_id, of_mode in groups.items():
        all_of_it = [rollout for group in of_mode.values() for rollout in group]
        one = all_of_it[0]
        if any(rollout.prompt != one.prompt for rollout in all_of_it):
            raise ValueError(
                f"the responses to question {question_id!r} have different prompts: give the questions to train on, if that is "
                "meant"
            )
        extra, reference = one.extra.get("question"), one.extra.get("reference")
        asked[question_id] = Question(
            question_id,
            one.prompt,
            reference if isinstance(reference, str) else None,
            extra if isinstance(extra, Mapping) else {},
        )
    return asked
