"""Best-of-N for any causal language model's `generate`: sample n responses, return the one that the hidden states rate best."""

from __future__ import annotations

from typing import Any

from swift_rm import BestOfNDecoding, SwiftRewardModel
from swift_rm.integrations.model_cache import cached_reward_model


def generate(
    model: Any,
    *,
    reward_model: str | SwiftRewardModel | None = None,
    n: int = 16,
    select: str = "best",
    prune: str | None = None,
    tokenizer: Any = None,
    **kwargs: Any,
) -> Any:
    """Return what ``model.generate(..., custom_generate=BestOfNDecoding(rm, n))`` returns; transformers calls this.

    ``reward_model`` is a folder, a Hub id, the name of an embedded model, or loaded; ``n``, ``select``, ``prune`` and
    ``tokenizer`` are those of ``BestOfNDecoding``; everything else is `generate`'s, which samples here unless it is told
    otherwise. Raises ValueError without a reward model, and what ``BestOfNDecoding`` raises.
    """
    if reward_model is None:
        raise ValueError("say which reward model is to choose: generate(..., reward_model='folder or Hub id', n=16)")
    rm = cached_reward_model(reward_model).to(model.device) if isinstance(reward_model, str) else reward_model
    if kwargs.get("generation_config") is None:
        kwargs.setdefault("do_sample", True)
    decoding = BestOfNDecoding(rm, n, select=select, prune=prune, tokenizer=tokenizer)
    # Not model.generate: of a model whose own folder holds this file that is this function.
    return type(model).generate(model, custom_generate=decoding, **kwargs)
