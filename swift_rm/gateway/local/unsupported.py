"""Fields that change what is generated and that a model here cannot follow: refused by name, unless they ask for nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swift_rm.gateway.request.errors import refused

# Each with the values that change nothing; null is one of every field.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tools": ([],), "functions": ([],), "tool_choice": ("none", "auto"), "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},), "logprobs": (False,), "top_logprobs": (0,), "prompt_logprobs": (),
    "logit_bias": ({},), "presence_penalty": (0,), "frequency_penalty": (0,), "repetition_penalty": (1,), "min_p": (0,),
    "typical_p": (1,), "min_tokens": (0,), "echo": (False,), "suffix": ("",), "modalities": (["text"], []), "audio": (),
    "web_search_options": (), "ignore_eos": (False,), "stop_token_ids": ([],), "bad_words": ([],), "use_beam_search": (False,),
    "skip_special_tokens": (True,), "include_stop_str_in_output": (False,), "truncate_prompt_tokens": (), "chat_template": (),
    "add_generation_prompt": (True,), "continue_final_message": (False,), "documents": ([],), "structured_outputs": ({},),
    "guided_json": (), "guided_regex": (), "guided_choice": (), "guided_grammar": (), "logits_processors": ([],),
}  # fmt: skip
# Those that may have any value: they change nothing of a text, and every client may send them.
_UNREAD = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"})
KNOWN = _UNREAD | set(_NEUTRAL)


def refuse_unsupported(others: Mapping[str, Any]) -> None:
    """Raise GatewayError, status 400, that names the first field which cannot be followed."""
    for name, value in others.items():
        neutral = _NEUTRAL.get(name)
        if neutral is None or value is None or any(value == one and type(value) in _kinds(one) for one in neutral):
            continue
        raise refused(f"{name!r} is not supported by a model served here: leave it out", name, "unsupported_parameter")


def _kinds(value: Any) -> tuple[type, ...]:
    """Return the types of JSON that are as good as a value's: 0 and 0.0, but not False."""
    return (int, float) if type(value) is int else (type(value),)
