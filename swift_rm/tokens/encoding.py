"""Prompts and responses as token ids: text and messages go through the tokenizer, ids are read as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from swift_rm.tokens.region import Region, find_region

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PromptInput = str | Sequence[dict[str, str]] | Sequence[int]
ResponseInput = str | Sequence[int]


@dataclass(frozen=True)
class Encoded:
    """One prompt and response as token ids, and the part of the response to read."""

    prompt_ids: Sequence[int]
    response_ids: Sequence[int]
    region: Region

    @property
    def length(self) -> int:
        """Return the number of tokens of prompt and response."""
        return len(self.prompt_ids) + len(self.response_ids)


def encode(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    prompts: Sequence[PromptInput],
    responses: Sequence[ResponseInput],
    region: str,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[Encoded]:
    """Turn prompts and responses into token ids with their regions; raise ValueError that names what cannot be read."""
    if isinstance(prompts, str) or isinstance(responses, str) or len(prompts) != len(responses):
        raise ValueError(f"expected as many prompts as responses, as two lists, got {len(prompts)} and {len(responses)}")
    encoded = []
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        prompt_ids = encode_prompt(tokenizer, prompt, chat_template_kwargs)
        response_ids = encode_response(tokenizer, response)
        check_ids(model, prompt_ids, response_ids, f"response {i}")
        encoded.append(Encoded(prompt_ids, response_ids, find_region(response_ids, region, tokenizer)))
    return encoded


def check_ids(model: PreTrainedModel, prompt_ids: Sequence[int], response_ids: Sequence[int], name: str) -> None:
    """Raise ValueError if a sequence cannot be read: nothing in it, too long, or ids that the model does not have."""
    config = model.config.get_text_config()
    limit, length = getattr(config, "max_position_embeddings", None), len(prompt_ids) + len(response_ids)
    if not length:
        raise ValueError(
            f"{name} has no token ids; records of an API are scored by a reward model of the source 'top_logprobs', "
            "without the language model"
        )
    if not prompt_ids:
        raise ValueError(f"{name} has an empty prompt")
    if not response_ids:
        raise ValueError(f"{name} is empty: it has no token to score")
    if limit and length > limit:
        raise ValueError(f"{name} and its prompt have {length} tokens, but the model's context is {limit}")
    check_vocabulary(vocabulary_size(model), [*prompt_ids, *response_ids], name)


def vocabulary_size(model: PreTrainedModel) -> int:
    """Return how many token ids a model has."""
    return int(model.config.get_text_config().vocab_size)


def check_vocabulary(size: int, ids: Sequence[int], name: str) -> None:
    """Raise ValueError for a token id that a model with ``size`` of them does not have."""
    strange = max(ids) if max(ids) >= size else min(ids)
    if not 0 <= strange < size:
        raise ValueError(f"{name} holds the token id {strange}, but the model has ids 0 to {size - 1}: is it another's?")


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase | None, prompt: PromptInput, chat_template_kwargs: Mapping[str, Any] | None = None
) -> list[int]:
    """Return a prompt's token ids: messages through the chat template, text with the tokenizer's own special tokens."""
    if not isinstance(prompt, str) and all(isinstance(token, int) for token in prompt):
        return list(cast(Sequence[int], prompt))
    if tokenizer is None:
        raise ValueError("a prompt given as text or messages needs the tokenizer")
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    messages = [dict(message) for message in cast(Sequence[dict[str, str]], prompt)]
    if not tokenizer.chat_template:
        raise ValueError("this model's tokenizer has no chat template: give prompts as text, not as messages")
    extra = dict(chat_template_kwargs or {})
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **extra)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase | None,
    prompts: Sequence[Any],
    chat_template_kwargs: Mapping[str, Any] | None,
    vocabulary: int,
) -> list[list[int]]:
    """Return the token ids of prompts that a model with so many ids is to answer; raise ValueError for none, and empty ones."""
    if isinstance(prompts, str) or not len(prompts):
        raise ValueError("prompts must be a list of at least one prompt")
    encoded = [encode_prompt(tokenizer, prompt, chat_template_kwargs) for prompt in prompts]
    for i, ids in enumerate(encoded):
        if not ids:
            raise ValueError(f"prompt {i} is empty")
        check_vocabulary(vocabulary, ids, f"prompt {i}")
    return encoded


def encode_response(tokenizer: PreTrainedTokenizerBase | None, response: ResponseInput) -> list[int]:
    """Return a response's token ids; text gets the end-of-sequence token with which a sampled response ends."""
    if not isinstance(response, str):
        return list(response)
    if tokenizer is None:
        raise ValueError("a response given as text needs the tokenizer")
    ids = list(tokenizer(response, add_special_tokens=False)["input_ids"])
    ends = ids and ids[-1] == tokenizer.eos_token_id
    return ids if not ids or ends or tokenizer.eos_token_id is None else [*ids, tokenizer.eos_token_id]
