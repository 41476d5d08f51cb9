"""The hybrid data pipeline: from N responses per mode to the responses on which a model learns when to think.

For every question: the pass rates p_on and p_off of its responses in each mode; the mode of the higher one, think-off if
they differ by less than delta, a random one for 1 % of the questions; of that mode's correct responses the shortest; and a
judge text that explains the mode. If the mode has no correct response that can be read, the other's shortest is kept;
if neither has one, the question is dropped. (HiPO, arXiv 2509.23967; it publishes neither delta nor N.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from swift_rm.hipo.cold_start.base_response import BaseResponse, read_native
from swift_rm.hipo.cold_start.cold_rows import ColdRow
from swift_rm.hipo.cold_start.judge_text import Explainer, Facts, RuleExplainer
from swift_rm.hipo.cold_start.mode_choice import (
    DELTA,
    RANDOM_SHARE,
    Try,
    check_source,
    choose_mode,
    group_modes,
    is_tie,
    pass_rate,
    questions_of,
    random_mode,
    tries_of,
)
from swift_rm.hipo.cold_start.questions import difficulty_of
from swift_rm.hipo.response.template import Mode, Template
from swift_rm.hipo.rewards.rollout_reward import RewardSource
from swift_rm.records.rollouts import Prompt, Rollout
from swift_rm.tasks.task import Question

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from swift_rm.reward.reward_model import SwiftRewardModel

COUNTED = (
    "questions", "kept", "dropped", "unjudged", "on", "off", "random", "ties", "other_mode", "responses", "malformed", "rule_text"
)  # fmt: skip


@dataclass(frozen=True)
class Cold:
    """The rows to train on, and the counts of what became of the questions and responses.

    Of the ``questions``, ``kept`` have a row, of mode ``on`` or ``off``; ``dropped`` had no correct response that could be
    read, ``unjudged`` a mode of which no response has a label (or probability). Among the judged, ``ties`` were decided by
    delta and ``random`` by chance; ``other_mode`` were kept in the mode that was not chosen, for want of a correct response.
    Of the ``responses``, ``malformed`` could not be read. ``rule_text`` counts the explanations that an endpoint did not give.
    """

    rows: tuple[ColdRow, ...]
    counts: Mapping[str, int]


def build(
    rollouts: Mapping[Mode, Sequence[Rollout]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: Template | None = None,
    explain: Explainer | None = None,
    source: RewardSource = "labels",
    rm: SwiftRewardModel | None = None,
    at_least: float = 0.5,
    delta: float = DELTA,
    random_share: float = RANDOM_SHARE,
    seed: int = 0,
    judged: bool = True,
    questions: Iterable[Question] | None = None,
) -> Cold:
    """Make a cold start of the responses in each mode (or one mode only: the shortest correct response of every question).

    Pass rates come from labels, or from "swift", the probabilities of the records (or of ``rm`` for their rewards), or from
    "both". A response is correct if its label, or its probability where that counts, is ``at_least`` 0.5. ``judged`` False
    leaves the judge block out. ``explain`` writes its text, :class:`RuleExplainer` unless another is given. ``questions``
    give the prompts to train on, with references and difficulties; else the rollouts' are taken, which must then be the
    same in both modes. Raises ValueError for an explanation that the tokenizer cannot write or that holds a tag, questions
    that were not sampled in both modes, rollouts without what ``source`` needs, and settings out of range.
    """
    check_source(source)
    check_shares(delta, random_share, at_least)
    form = template or Template()
    form = form if judged else replace(form, judge=None)
    groups = group_modes(rollouts)
    asked = questions_of(groups, questions)
    made = _Pipeline(tokenizer, form, explain or RuleExplainer(), at_least, delta, random_share, seed)
    tries = {
        question_id: {mode: tries_of(group, source, rm) for mode, group in of_mode.items()}
        for question_id, of_mode in groups.items()
    }
    if all(one.chance is None for of_mode in tries.values() for group in of_mode.values() for one in group):
        wanted = {"labels": "a label", "swift": "a probability, or a reward beside a reward model", "both": "either"}[source]
        raise ValueError(
            f"none of the {sum(map(len, rollouts.values()))} responses has {wanted}, where pass rates come from {source!r}"
        )
    rows = [row for question_id, of_mode in tries.items() if (row := made.row(asked[question_id], of_mode)) is not None]
    fallbacks = getattr(made.explain, "fallbacks", None)
    if isinstance(fallbacks, Counter):
        made.counts["rule_text"] = fallbacks.total()
    return Cold(tuple(rows), {name: made.counts[name] for name in COUNTED})


def check_shares(delta: float, random_share: float, at_least: float = 0.5) -> None:
    """Raise ValueError unless these are shares."""
    if not (0 <= delta <= 1 and 0 <= random_share <= 1 and 0 < at_least <= 1):
        raise ValueError(
            f"delta, random_share and at_least are shares between 0 and 1 (at_least above 0), got {delta}, {random_share} and "
            f"{at_least}"
        )


def check_explainer(explain: Explainer, tokenizer: PreTrainedTokenizerBase, template: Template) -> None:
    """Raise ValueError if the tokenizer cannot write what a rule says, before anything is sampled for it."""
    rule = getattr(explain, "rule", explain)
    if template.judge is None or not isinstance(rule, RuleExplainer):
        return
    said = rule(Facts("", "on", 0.875, 0.25, 8, 8))
    if not writes(tokenizer, template, "off", BaseResponse(None, "1"), said):
        raise _unwritable(said)


def writes(tokenizer: PreTrainedTokenizerBase, template: Template, mode: Mode, native: BaseResponse, judge: str) -> bool:
    """Tell whether the tokens of the response say what it says; raise ValueError for a text that holds a tag."""
    text = template.render(mode, native.answer, judge=judge, think=native.think)
    parsed = template.parse(tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer)
    said = (parsed.judge or "", parsed.think or "", parsed.answer or "")
    return parsed.formatted and list(map(_dense, said)) == list(map(_dense, (judge, native.think or "", native.answer)))


@dataclass
class _Pipeline:
    tokenizer: PreTrainedTokenizerBase
    template: Template
    explain: Explainer
    at_least: float
    delta: float
    random_share: float
    seed: int

    def __post_init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def row(self, question: Question, tries: Mapping[Mode, Sequence[Try]]) -> ColdRow | None:
        """Return a question's row, None if it is left out; both are counted."""
        self.counts["questions"] += 1
        rates = {mode: pass_rate(group) for mode, group in tries.items()}
        known = {mode: sum(one.chance is not None for one in group) for mode, group in tries.items()}
        readable = {mode: self._readable(mode, group) for mode, group in tries.items()}
        if any(rate is None for rate in rates.values()):
            self.counts["unjudged"] += 1
            return None
        wanted = self._choose(question.question_id, {mode: rate for mode, rate in rates.items() if rate is not None})
        for mode in sorted(tries, key=lambda one: one != wanted):
            for _, native in sorted(readable[mode], key=lambda one: one[0]):
                if not writes(self.tokenizer, self.template, mode, native, ""):
                    self.counts["malformed"] += 1
                    continue
                self.counts.update(["kept", mode, *(["other_mode"] if mode != wanted else [])])
                facts = Facts(
                    _text(question.prompt), mode, rates.get("on"), rates.get("off"), known.get("on", 0), known.get("off", 0)
                )
                return self._made(question, mode, native, facts)
        self.counts["dropped"] += 1
        return None

    def _readable(self, mode: Mode, tries: Sequence[Try]) -> list[tuple[int, BaseResponse]]:
        """Return the correct responses that can be read, each with its number of tokens; count those that cannot."""
        self.counts["responses"] += len(tries)
        found = []
        for one in tries:
            native = read_native(one.rollout, mode, self.tokenizer, self.template)
            self.counts["malformed"] += native is None
            if native is not None and one.chance is not None and one.chance >= self.at_least:
                found.append((len(one.rollout.response_ids), native))
        return found

    def _choose(self, question_id: str, rates: Mapping[Mode, float]) -> Mode:
        if len(rates) == 1:
            return next(iter(rates))
        by_chance = random_mode(question_id, self.seed, self.random_share)
        if by_chance is not None:
            self.counts["random"] += 1
            return by_chance
        self.counts["ties"] += is_tie(rates["on"], rates["off"], self.delta)
        return choose_mode(rates["on"], rates["off"], self.delta)

    def _made(self, question: Question, mode: Mode, native: BaseResponse, facts: Facts) -> ColdRow:
        judge = self.explain(facts) if self.template.judge is not None else ""
        instead = getattr(self.explain, "instead", None)  # of an endpoint, whose replies are not to be relied on
        if instead is not None and not writes(self.tokenizer, self.template, mode, native, judge):
            judge = instead(facts, "a reply that the tokenizer cannot write")
        if not writes(self.tokenizer, self.template, mode, native, judge):
            raise _unwritable(judge)
        completion = self.template.render(mode, native.answer, judge=judge, think=native.think)
        return ColdRow(
            question.question_id, question.prompt, completion, mode, facts.p_on, facts.p_off, difficulty_of(question),
            question.reference,
        )  # fmt: skip


def _unwritable(judge: str) -> ValueError:
    return ValueError(
        f"the tokenizer cannot write the explanation {judge!r:.200}: choose another explainer, such as the terse form of the rule"
    )


def _text(prompt: Prompt) -> str:
    """Return the text of a prompt, of messages the last user's."""
    if isinstance(prompt, str):
        return prompt
    said: list[Any] = [message.get("content") for message in prompt if message.get("role") == "user"]
    return said[-1] if said and isinstance(said[-1], str) else ""


def _dense(text: str) -> str:
    return "".join(text.split())
