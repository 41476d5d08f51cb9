"""A filter for lm-evaluation-harness that keeps, of a question's repeats, the response with the highest reward."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from swift_rm.integrations.scored_text import ScoredText
from swift_rm.selection.rules import check_rule, select
from swift_rm.tasks.answers import find_answer

try:
    from lm_eval.api.filter import Filter
    from lm_eval.api.registry import register_filter
except ImportError as error:
    raise ImportError('lm-evaluation-harness needs lm-eval: pip install "swift-rm[adapters]"') from error


@register_filter("best_of_n")
class BestOfNFilter(Filter):  # type: ignore[misc]
    """``function: best_of_n`` in a task's ``filter_list``: of each question's responses the best one is left.

    It reads the rewards that the responses of ``--model swift-rm`` carry, so it comes before filters that cut texts;
    ``take_first_k`` may go before it. ``rule`` is one of :mod:`swift_rm.selection.rules` that reads rewards or answers, which
    are found as :mod:`swift_rm.tasks.answers` says. Raises ValueError for another rule, responses that carry no reward,
    and where none of a question's has one.
    """

    def __init__(self, rule: str = "best") -> None:
        check_rule(rule, external=False)  # before anything is chosen
        self.rule = rule

    def apply(self, resps: Iterable[Sequence[str]], docs: Any) -> list[list[str]]:
        """Return the chosen response of each question as plain text, in a list of its own."""
        return [[self._chosen(responses)] for responses in resps]

    def _chosen(self, responses: Sequence[str]) -> str:
        rewards = [one.reward for one in responses if isinstance(one, ScoredText)]
        if len(rewards) < len(responses):
            bad = next(one for one in responses if not isinstance(one, ScoredText))
            raise ValueError(
                f"the response {bad!r:.80} carries no reward: generate with --model swift-rm, and put best_of_n before "
                "filters that cut texts"
            )
        return str(responses[select(self.rule, rewards, [find_answer(one) for one in responses]).index])
