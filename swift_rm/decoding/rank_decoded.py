"""Rank the candidates that the engine decoded for a question, and choose one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from swift_rm.decoding.decoded_candidate import DecodedCandidate
from swift_rm.decoding.engine import PromptState
from swift_rm.selection.candidates import BestOfN, Candidate, ranked, why_no_reward
from swift_rm.tasks.answers import find_answer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from swift_rm.reward.reward_model import SwiftRewardModel

ExternalReward = Callable[[list[Any], list[str]], Sequence[float]]


def result_of(
    rm: SwiftRewardModel,
    prompt: Any,
    asked: PromptState,
    texts: Sequence[str],
    n: int,
    rule: str,
    answer: Callable[[str], str | None] = find_answer,
    external: ExternalReward | None = None,
) -> BestOfN:
    """Rank one question's candidates, whose ``texts`` are given, and choose; raise ValueError if none has a reward."""
    whole = [one for one in asked.candidates if one.complete]
    if not whole:
        why = why_no_reward([one.flag for one in asked.candidates])
        raise ValueError(f"none of the {len(asked.candidates)} candidates of {str(prompt)!r:.80} has a reward: {why}")
    said: dict[int, float] = {}
    if external is not None:
        at = [i for i, one in enumerate(asked.candidates) if one.complete]
        said = dict(zip(at, _ask(external, [prompt] * len(at), [texts[i] for i in at]), strict=True))
    candidates = candidates_of(rm, asked.candidates, texts, answer, said)
    mean = sum(len(one.token_ids) for one in whole) / len(whole)
    saved = sum(max(0.0, mean - len(one.token_ids)) for one in asked.candidates if not one.complete) + mean * (n - asked.started)
    return ranked(prompt, candidates, rule, asked.tokens, round(saved), asked.ended or "all")


def candidates_of(
    rm: SwiftRewardModel,
    decoded: Sequence[DecodedCandidate],
    texts: Sequence[str],
    answer: Callable[[str], str | None] = find_answer,
    external: Mapping[int, float] | None = None,
) -> list[Candidate]:
    """Return candidates in the order in which they were drawn; ``external`` has the external rewards of those it knows."""
    probabilities, said = rm.probability([one.reward for one in decoded]).tolist(), external or {}
    return [
        Candidate(text, one.token_ids, one.reward, probability, one.logprob, one.finish_reason,
                  answer(text) if one.complete else None, one.flag, said.get(i))
        for i, (one, text, probability) in enumerate(zip(decoded, texts, probabilities, strict=True))
    ]  # fmt: skip


def _ask(external: ExternalReward, prompts: list[Any], texts: list[str]) -> list[float]:
    rewards = [float(reward) for reward in external(prompts, texts)]
    if len(rewards) != len(texts):
        raise ValueError(f"the external reward function gave {len(rewards)} rewards for {len(texts)} responses")
    return rewards


def decode_text(tokenizer: PreTrainedTokenizerBase, one: DecodedCandidate) -> str:
    """Return a candidate's text as answers are read from it, without special tokens."""
    return str(tokenizer.decode(one.token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
