"""What the token view shows of a response and of its prompt, from the scores of its tokens and its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from swift_rm.report.token_view import CandidateView
    from swift_rm.scoring.token_scoring import ScoredTokens


def view_candidate(
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[int],
    scored: ScoredTokens,
    probability: float,
    record: Mapping[str, Any],
) -> CandidateView:
    """Return what the page shows of one response; ``record`` may know ``answer``, ``label`` and ``finish_reason``."""
    from swift_rm.report.token_view import CandidateView, TokenView
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
