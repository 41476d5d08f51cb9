"""Gate and reward of each token of a response, and each token's text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from swift_rm.reward.identity import check_base_model
from swift_rm.scoring.teacher_forced_states import drop_end_tokens, packed_features
from swift_rm.tokens.encoding import Encoded, PromptInput, ResponseInput, encode
from swift_rm.tokens.region import Flag

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from swift_rm.reward.reward_model import SwiftRewardModel


@dataclass(frozen=True)
class ScoredTokens:
    """One response: its tokens, and gate (0..1) and reward of those that are read, ``token_ids[i] for i in read``.

    ``response_reward`` is the gated mean of the tokens' rewards, sum(gate * reward) / sum(gate); of several heads a token has
    the means, and ``response_reward`` is made of each head's own, ``heads [M]``. ``flag`` says why the whole response was
    read instead of the configured region, or that its states are not finite.
    """

    token_ids: list[int]
    read: Sequence[int]
    gate: list[float]
    reward: list[float]
    response_reward: float
    flag: Flag | Literal["not_finite"] | None = None
    heads: Sequence[float] = ()


def score_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    rm: SwiftRewardModel,
    prompts: Sequence[PromptInput],
    responses: Sequence[ResponseInput],
    *,
    batch_size: int = 32,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[ScoredTokens]:
    """Compute gate and reward of each token of each response, and the response's reward, as ``score`` does.

    Arguments are those of :func:`swift_rm.scoring.score.score`. A response without a token after the region's marker, or with
    states that are NaN or Inf, is flagged. Raises ValueError for another base model and for what cannot be encoded.
    """
    check_base_model(rm.config, model, tokenizer)
    encoded = encode(model, tokenizer, prompts, responses, rm.config.region, chat_template_kwargs)
    return read_tokens(model, rm, encoded, batch_size=batch_size)


def read_tokens(
    model: PreTrainedModel, rm: SwiftRewardModel, encoded: Sequence[Encoded], *, batch_size: int = 32
) -> list[ScoredTokens]:
    """Compute what :func:`score_tokens` does of encoded responses."""
    scored: dict[int, ScoredTokens] = {}
    device = rm.head.weight.device
    encoded = drop_end_tokens(model, rm.config.source, encoded)
    with torch.inference_mode():
        for packed in packed_features(model, rm.config, encoded, batch_size=batch_size):
            layers, ends = [layer.to(device) for layer in packed.layers], packed.offsets.tolist()
            pooled, tokens = rm.head.rewards_and_tokens(layers, packed.offsets)
            pooled = packed.nan_where_unread(pooled)
            rewards, heads = rm.head.combine(pooled).tolist(), pooled.tolist()
            gate, reward = tokens.gate.tolist(), tokens.reward.tolist()
            for row, index in enumerate(packed.indices):
                one, here = encoded[index], slice(ends[row], ends[row + 1])
                known = abs(rewards[row]) < float("inf") or not len(one.region.tokens)
                flag = one.region.flag if known else "not_finite"
                ids = list(one.response_ids)
                scored[index] = ScoredTokens(ids, one.region.tokens, gate[here], reward[here], rewards[row], flag, heads[row])
            del packed, layers  # before the next batch is read
    return [scored[index] for index in range(len(encoded))]


def token_columns(tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int], scored: ScoredTokens) -> dict[str, list[Any]]:
    """Return a response's tokens as columns for a record: ``text``, ``gate`` and ``reward``, None where a token is not read."""
    gate: list[float | None] = [None] * len(scored.token_ids)
    reward: list[float | None] = [None] * len(scored.token_ids)
    for place, g, r in zip(scored.read, scored.gate, scored.reward, strict=True):
        gate[place], reward[place] = round(g, 4), round(r, 4)
    return {"text": token_texts(tokenizer, scored.token_ids, prompt_ids), "gate": gate, "reward": reward}


def token_texts(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], before: Sequence[int] = ()) -> list[str]:
    """Return the text that each token adds to those before it; joined they are the text of all.

    ``before`` holds tokens in front of the first one, without which some tokenizers drop its leading space. A token that
    ends within a character adds nothing; the one that completes the character adds it.
    """
    ids = [*before[-4:], *token_ids]
    texts: list[str] = []
    done = grown = len(ids) - len(token_ids)  # ids[start:done] is context, whose text is known to be whole
    start, seen = 0, len(_decode(tokenizer, ids[:done]))
    for end in range(done + 1, len(ids) + 1):
        text = _decode(tokenizer, ids[start:end])
        # No character is longer than four bytes: what is still broken after as many tokens stays so.
        waiting = text.endswith("\ufffd") and end < len(ids) and end - grown < 4
        stable = text.rstrip("\ufffd") if waiting else text
        texts.append(stable[seen:])
        if len(stable) > seen:
            seen, grown = len(stable), end
        if not waiting:
            start, done, grown = done, end, end
            seen = len(_decode(tokenizer, ids[start:done]))
    return texts


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)) if ids else ""
