"""Best-of-N: questions in, ranked candidates out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from swift_rm.decoding.candidate_budget import CandidatePlan
from swift_rm.decoding.engine import Engine, PromptState, StepCallback
from swift_rm.decoding.pruning import Prune, get_prune
from swift_rm.decoding.rank_decoded import ExternalReward, decode_text, result_of
from swift_rm.records.rollouts import Prompt
from swift_rm.reward.identity import check_base_model
from swift_rm.sampling.generation import sampling_settings, seed_for
from swift_rm.selection.candidates import BestOfN
from swift_rm.selection.rule_table import DEFAULT_RULE
from swift_rm.selection.rules import check_rule
from swift_rm.tasks.answers import find_answer
from swift_rm.tokens.encoding import encode_prompts, vocabulary_size

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from swift_rm.reward.reward_model import SwiftRewardModel


def best_of_n(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rm: SwiftRewardModel,
    prompts: Sequence[Prompt | Sequence[int]],
    n: int = 16,
    select: str = DEFAULT_RULE,
    prune: Prune | str | None = None,
    stop_at: float | None = None,
    *,
    budget: int | None = None,
    wave: int | None = None,
    min_gain: float = 0.01,
    external: ExternalReward | None = None,
    answer: Callable[[str], str | None] = find_answer,
    max_new_tokens: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    progress: bool = False,
    watch: StepCallback | None = None,
    on_results: Callable[[list[BestOfN]], None] | None = None,
    **generation_kwargs: Any,
) -> list[BestOfN]:
    """Sample ``n`` responses per prompt, score their hidden states as they are generated, and choose one by the rule ``select``.

    Rules are those of :func:`swift_rm.selection.rules.select`; votes are cast with ``answer(text)``. The default, "shrunk",
    takes the best candidate of the answer with the highest mean probability, shrunk by support; where no answer is found
    it is "best", the highest reward. "rank" and "scale" fuse the rewards with those of ``external(prompts, responses)``.
    ``prune`` ("halving", "confidence", or a rule of :mod:`swift_rm.decoding.pruning`) drops hopeless candidates on their way.
    ``stop_at`` samples in waves of ``wave`` candidates (an eighth of n) and stops a question whose most probable
    candidate is right with that probability, or whose next wave is expected to raise it by less than ``min_gain``;
    ``select`` then chooses among what is there. ``budget`` is a number of tokens for all prompts together, spent in waves
    where they are expected to help most: every question gets one wave, whatever the budget, and candidates that are
    unfinished when it is spent are dropped. ``batch_size`` counts prompts. ``on_results`` gets the results of each batch
    as it is done.

    A candidate whose states are not finite has the reward NaN and is not chosen while others stand. After Ctrl-C the
    questions for which a candidate had finished come back, with a warning. Raises ValueError for another base model,
    n < 1, no prompts, an empty prompt or one longer than the context.
    """
    if n < 1 or batch_size < 1:
        raise ValueError(f"n and batch_size must be at least 1, got {n} and {batch_size}")
    plan = CandidatePlan(n, max(1, n // 8) if wave is None else wave, stop_at, budget, min_gain)
    check_rule(select, external is not None)
    check_base_model(rm.config, model, tokenizer)
    rule = get_prune(prune, rm)
    encoded = encode_prompts(tokenizer, prompts, chat_template_kwargs, vocabulary_size(model))
    settings = sampling_settings(model, max(map(len, encoded)), n, max_new_tokens, generation_kwargs)
    engine = Engine(model, tokenizer, rm, settings, plan, rule)
    size = len(prompts) if budget is not None else batch_size  # a budget is shared out among all
    results: list[BestOfN] = []
    with tqdm(total=len(prompts), desc="best of n", unit="question", disable=not progress, delay=1) as bar:
        for start in range(0, len(prompts), size):
            asked = [PromptState(ids) for ids in encoded[start : start + size]]
            finished = engine.answer(asked, seed_for(seed, start), watch, batch_size)
            chosen = [
                result_of(
                    rm, prompt, one, [decode_text(tokenizer, c) for c in one.candidates], n, select, answer, external
                )
                for prompt, one in zip(prompts[start : start + size], asked, strict=True)
                if finished or any(candidate.complete for candidate in one.candidates)
            ]  # fmt: skip
            results.extend(chosen)
            if on_results is not None:
                on_results(chosen)
            bar.update(len(chosen))
            if not finished:
                warnings.warn(f"stopped by Ctrl-C: {len(results)} of {len(prompts)} questions have an answer", stacklevel=2)
                break
    return results
