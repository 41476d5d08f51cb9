"""Best-of-N, or a ranking of given candidates, in one line, in the shape of llm-blender's; models by name are loaded once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from swift_rm.decoding.best_of_n import best_of_n
from swift_rm.integrations.model_cache import cached_models, forget
from swift_rm.records.rollouts import Prompt
from swift_rm.reward.reward_model import SwiftRewardModel
from swift_rm.scoring.score import score
from swift_rm.tokens.encoding import ResponseInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["best_of_n_generate", "forget", "rank"]


def best_of_n_generate(
    model: str | PreTrainedModel,
    prompts: Sequence[Prompt | Sequence[int]],
    *,
    reward_model: str | SwiftRewardModel,
    n: int = 16,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: str | None = None,
    dtype: str | None = None,
    **settings: Any,
) -> list[str]:
    """Return the best of ``n`` responses to each prompt, which is text, chat messages or token ids.

    ``model`` and ``reward_model`` are folders, Hub ids, names of embedded models, or loaded; see
    :func:`swift_rm.integrations.model_cache.cached_models` for what of them is kept, and :func:`forget` to let it go.
    ``settings`` are those of :func:`swift_rm.best_of_n` (``select``, ``stop_at``, ``max_new_tokens``, ``seed``, ...), and so are
    the errors.
    """
    loaded = cached_models(model, reward_model, tokenizer=tokenizer, device=device, dtype=dtype)
    return [result.best.text for result in best_of_n(*loaded, prompts, n=n, **settings)]


def rank(
    model: str | PreTrainedModel,
    inputs: Sequence[Prompt | Sequence[int]],
    candidates: Sequence[Sequence[ResponseInput]],
    *,
    reward_model: str | SwiftRewardModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: str | None = None,
    dtype: str | None = None,
    **settings: Any,
) -> list[list[int]]:
    """Return the rank of each candidate for its input, ``[inputs][candidates]``: 1 is the best, and equal ones share a rank.

    Models are given as to :func:`best_of_n_generate`; ``settings`` are those of :func:`swift_rm.score`, and so are the errors:
    a candidate whose states are not finite is one. Raises ValueError, too, for anything but a list of candidates for each input.
    """
    if isinstance(inputs, str) or isinstance(candidates, str) or any(isinstance(some, str) for some in candidates):
        raise ValueError(f"expected a list of inputs and a list of candidates for each, got {inputs!r:.40}, {candidates!r:.80}")
    if len(inputs) != len(candidates):
        raise ValueError(f"expected a list of candidates for each input, got {len(inputs)} inputs and {len(candidates)} lists")
    if empty := [place for place, some in enumerate(candidates) if not some]:
        raise ValueError(f"input {empty[0]} has no candidates to rank")
    loaded = cached_models(model, reward_model, tokenizer=tokenizer, device=device, dtype=dtype)
    keys: list[list[ResponseInput]] = [[one if isinstance(one, str) else tuple(one) for one in some] for some in candidates]
    each = [(place, key) for place, some in enumerate(keys) for key in dict.fromkeys(some)]  # equal ones once: they are to tie
    rewards = score(*loaded, [inputs[place] for place, _ in each], [key for _, key in each], **settings)
    told = dict(zip(each, rewards, strict=True))
    return [[1 + sum(told[i, other] > told[i, one] for other in some) for one in some] for i, some in enumerate(keys)]
