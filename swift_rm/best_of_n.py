"""Best-of-N: questions in, ranked candidates out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from swift_rm.encoding import Encoded, encode_prompt
from swift_rm.generation import Response, generate_responses, sampling_settings, seed_for
from swift_rm.identity import check_base_model
from swift_rm.region import Flag, find_region
from swift_rm.rollouts import Prompt
from swift_rm.scoring import score_encoded
from swift_rm.selection import select as select_candidate
from swift_rm.tasks.answers import find_answer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from swift_rm.reward_model import SwiftRewardModel


@dataclass(frozen=True)
class Candidate:
    """One sampled response with its reward (a logit; NaN if its states were not finite) and probability of being right.

    ``logprob`` is the mean log-probability of its tokens, ``answer`` what votes are cast with, ``flag`` tells why the
    whole response was read instead of the configured region.
    """

    text: str
    token_ids: list[int]
    reward: float
    probability: float
    logprob: float
    finish_reason: str
    answer: str | None
    flag: Flag | None


@dataclass(frozen=True)
class BestOfN:
    """The candidates of one question in the order of their rewards, best first, and the one the rule chose."""

    prompt: Prompt | Sequence[int]
    candidates: list[Candidate]
    best: Candidate


def best_of_n(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rm: SwiftRewardModel,
    prompts: Sequence[Prompt | Sequence[int]],
    n: int = 16,
    select: str = "best",
    prune: object = None,
    stop_at: float | None = None,
    *,
    answer: Callable[[str], str | None] = find_answer,
    max_new_tokens: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    progress: bool = False,
    **generation_kwargs: Any,
) -> list[BestOfN]:
    """Sample ``n`` responses per prompt, score their hidden states, and choose one by the rule ``select``.

    Rules are those of :func:`swift_rm.selection.select` that need no external reward: ``best``, ``majority``, ``vote``,
    ``borda``; votes are cast with ``answer(text)``. ``batch_size`` counts prompts. A candidate whose states are not
    finite has the reward NaN and is not chosen while others stand. ``prune`` and ``stop_at`` belong to one-pass
    generation, which is not there yet: they must be None. Raises ValueError for another base model, n < 1, no prompts,
    an empty prompt or one longer than the context.
    """
    if prune is not None or stop_at is not None:
        raise ValueError("prune and stop_at need one-pass generation, which this version does not have; leave them None")
    if n < 1 or batch_size < 1:
        raise ValueError(f"n and batch_size must be at least 1, got {n} and {batch_size}")
    if select in ("rank", "scale"):
        raise ValueError(
            f"select={select!r} fuses with an external reward; score the candidates and call swift_rm.selection.select"
        )
    select_candidate(select, [0.0], [None])  # an unknown rule is refused before anything is sampled
    check_base_model(rm.config, model, tokenizer)
    if isinstance(prompts, str) or not len(prompts):
        raise ValueError("prompts must be a list of at least one prompt")
    encoded = [encode_prompt(tokenizer, prompt, chat_template_kwargs) for prompt in prompts]
    empty = [i for i, ids in enumerate(encoded) if not ids]
    if empty:
        raise ValueError(f"prompt {empty[0]} is empty")
    settings = sampling_settings(model, max(map(len, encoded)), n, max_new_tokens, generation_kwargs)
    results: list[BestOfN] = []
    with tqdm(total=len(prompts), desc="best of n", unit="question", disable=not progress, delay=1) as bar:
        for start in range(0, len(prompts), batch_size):
            ids = encoded[start : start + batch_size]
            groups = generate_responses(model, tokenizer, ids, n, seed_for(seed, start), settings)
            for prompt, prompt_ids, responses in zip(prompts[start : start + batch_size], ids, groups, strict=True):
                candidates = _candidates(model, tokenizer, rm, prompt_ids, responses, answer)
                results.append(_rank(prompt, candidates, select))
            bar.update(len(ids))
    return results


def _candidates(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rm: SwiftRewardModel,
    prompt_ids: Sequence[int],
    responses: Sequence[Response],
    answer: Callable[[str], str | None],
) -> list[Candidate]:
    regions = [find_region(response.token_ids, rm.config.marker, tokenizer) for response in responses]
    encoded = [Encoded(prompt_ids, r.token_ids, region) for r, region in zip(responses, regions, strict=True)]
    rewards = score_encoded(model, rm, encoded)
    probabilities = rm.probability(rewards).tolist()
    return [
        Candidate(r.text, r.token_ids, reward, p, r.logprob_mean, r.finish_reason, answer(r.text), region.flag)
        for r, region, reward, p in zip(responses, regions, rewards, probabilities, strict=True)
    ]


def _rank(prompt: Prompt | Sequence[int], candidates: list[Candidate], rule: str) -> BestOfN:
    rewards = [candidate.reward for candidate in candidates]
    if all(reward != reward for reward in rewards):
        raise ValueError(
            f"none of the {len(candidates)} candidates of {str(prompt)!r:.80} has a reward: their states are NaN or Inf"
        )
    chosen = candidates[select_candidate(rule, rewards, [candidate.answer for candidate in candidates]).index]
    order = sorted(candidates, key=lambda candidate: (candidate.reward != candidate.reward, -candidate.reward))
    return BestOfN(prompt, order, chosen)
