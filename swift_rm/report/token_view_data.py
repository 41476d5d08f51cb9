"""What the token view shows: questions, their candidates, each token's gate and reward, and the scale of its colours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from swift_rm.scoring.token_scoring import ScoredTokens


REWARD_STEPS, GATE_STEPS = 21, 5  # colours and shades


@dataclass(frozen=True)
class TokenView:
    """One token: its text, its id, and its gate (0..1) and reward, which are None where the reward model does not read it.

    The id is None where only texts are known.
    """

    text: str
    token_id: int | None
    gate: float | None = None
    reward: float | None = None


@dataclass(frozen=True)
class CandidateView:
    """One response: its tokens, reward, probability of being right, and what else is known of it (None: not known)."""

    tokens: Sequence[TokenView]
    reward: float
    probability: float
    answer: str | None = None
    label: int | None = None
    finish_reason: str | None = None
    flag: str | None = None


@dataclass(frozen=True)
class QuestionView:
    """One question: its id if it has one, its prompt as (role or None, text) turns, its candidates; ``total`` were there."""

    question_id: str | None
    prompt: Sequence[tuple[str | None, str]]
    candidates: Sequence[CandidateView]
    total: int


@dataclass(frozen=True)
class PageView:
    """What the page shows: its title, the models' names, at which state how many heads read, the questions of ``total``."""

    title: str
    base_model: str
    reward_model: str
    position: str
    questions: Sequence[QuestionView]
    total: int
    heads: int = 1


@dataclass(frozen=True)
class Scale:
    """How numbers become colours on one page: rewards from -reward to +reward, gates from 0 to gate."""

    reward: float
    gate: float

    @classmethod
    def of(cls, tokens: Sequence[TokenView]) -> Scale:
        """Fit the scale to a page: 90 % of all gate lies on rewards within it, the largest gate has the full shade.

        Rounded up to two digits. A page without numbers, or with nothing but zeros, gets the scale 1.
        """
        pairs = sorted((abs(reward), gate) for gate, reward in filter(None, map(numbers, tokens)))
        sums = list(accumulate(gate for _, gate in pairs))
        reach = next((reward for (reward, _), sum_ in zip(pairs, sums, strict=True) if sum_ >= 0.9 * sums[-1]), 0.0)
        return cls(_round_up(reach) or 1.0, max((gate for _, gate in pairs), default=0.0) or 1.0)

    def classes(self, gate: float, reward: float) -> str:
        """Return the CSS classes of a token: one of 21 colours, one of 5 shades."""
        middle = REWARD_STEPS // 2
        colour = middle + round(max(-1.0, min(1.0, reward / self.reward)) * middle)
        return f"r{colour} g{round(min(1.0, gate / self.gate) * (GATE_STEPS - 1))}"


def numbers(token: TokenView) -> tuple[float, float] | None:
    """Return gate and reward, or None if the token is not read or its state was not finite."""
    if token.gate is None or token.reward is None or not math.isfinite(token.gate + token.reward):
        return None
    return token.gate, token.reward


def _round_up(value: float) -> float:
    if value <= 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / unit - 1e-9) * unit:.2g}")


def view_candidate(
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[int],
    scored: ScoredTokens,
    probability: float,
    record: Mapping[str, Any],
) -> CandidateView:
    """Return what the page shows of one response; ``record`` may know ``answer``, ``label`` and ``finish_reason``."""
    from swift_rm.scoring.token_scoring import token_texts

    numbers = dict(zip(scored.read, zip(scored.gate, scored.reward, strict=True), strict=True))
    texts = token_texts(tokenizer, scored.token_ids, prompt_ids)
    pairs = enumerate(zip(texts, scored.token_ids, strict=True))
    tokens = [TokenView(*one, *numbers.get(place, (None, None))) for place, one in pairs]
    answer, finish = (None if record.get(key) is None else str(record[key]) for key in ("answer", "finish_reason"))
    label = record.get("label") if record.get("label") in (0, 1) else None
    return CandidateView(tokens, scored.response_reward, probability, answer, label, finish, scored.flag)


def turns(tokenizer: PreTrainedTokenizerBase, prompt: Any) -> list[tuple[str | None, str]]:
    """Return a prompt as (role, text) turns; text and token ids have one, without a role."""
    if isinstance(prompt, str):
        return [(None, prompt)]
    if all(isinstance(token, int) for token in prompt):
        return [(None, str(tokenizer.decode(list(prompt))))]
    return [(str(message.get("role")), str(message.get("content"))) for message in prompt]
