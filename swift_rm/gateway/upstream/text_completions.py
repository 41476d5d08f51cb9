"""Turn text completions into chat completions: the same choices, in the shape that :mod:`swift_rm.api.reply` reads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from swift_rm.api.failures import RetryableFault

_PART = "\ufffd"  # what servers write for a part of a character: of several tokens with this text one alternative is left


def text_logprob_fields(alternatives: int) -> dict[str, Any]:
    """Return what asks a text completion for log-probabilities."""
    return {"logprobs": alternatives}


def as_chat(body: Any, alternatives: int) -> Any:
    """Return a text completion's JSON with its choices as those of a chat; what has no choices is returned as it is.

    Log-probabilities come as OpenAI's legacy lists (``tokens``, ``token_logprobs``, ``top_logprobs``, vLLM's too) or, from
    llama.cpp, as in a chat. Raises RetryableFault for legacy lists that are none.
    """
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list):
        return body
    return {**body, "choices": [_chat_choice(choice, alternatives) for choice in choices]}


def _chat_choice(choice: Any, alternatives: int) -> Any:
    if not isinstance(choice, dict):
        return choice
    logprobs = choice.get("logprobs")
    if isinstance(logprobs, dict) and "tokens" in logprobs:
        logprobs = {"content": _entries(logprobs, alternatives)}
    message = {"role": "assistant", "content": choice["text"]} if "text" in choice else None
    return {**choice, "message": message, "logprobs": logprobs}


def _entries(legacy: Mapping[str, Any], alternatives: int) -> list[dict[str, Any]]:
    """Return a chat's entries, one a token."""
    lists: list[Any] = [legacy.get(name) for name in ("tokens", "token_logprobs", "top_logprobs")]
    tokens, chosen, top = *lists[:2], lists[2] or []
    if not all(isinstance(one, list) for one in (tokens, chosen, top)) or len(tokens) != len(chosen) or len(top) > len(tokens):
        raise RetryableFault("a choice whose log-probabilities are no lists of tokens")
    return [
        {"token": token, "logprob": value, "top_logprobs": _alternatives(others or {}, alternatives)}
        for token, value, others in zip_longest(tokens, chosen, top)
    ]


def _alternatives(told: Any, wanted: int) -> Any:
    """Return a token's alternatives as a chat has them, by text.

    Those that share the text of a part of a character are one here: where that may have been, the missing ones are taken to
    be as likely as the least of the others, or as what these leave.
    """
    if not isinstance(told, dict):
        return told
    values = list(told.values())
    numbers = [value for value in values if isinstance(value, float | int)]
    if len(values) < wanted and _PART in "".join(told) and len(numbers) == len(values):
        lost = wanted - len(values)
        left = max(1 - sum(math.exp(min(value, 0.0)) for value in numbers), 1e-9) / lost
        values += [min(*numbers, math.log(left))] * lost
    return [{"logprob": value} for value in values]
