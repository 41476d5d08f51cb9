"""Read a request for a model here: its prompts as token ids, how many tokens may follow, and fields that are refused."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from swift_rm.gateway.request.completion_request import CompletionRequest
from swift_rm.gateway.request.errors import refused
from swift_rm.sampling.generation import DEFAULT_NEW_TOKENS
from swift_rm.tokens.encoding import check_vocabulary, encode_prompt, vocabulary_size

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Fields that change what is generated and that a model here cannot follow, each with the values that change nothing; null is
# one of every field.
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
KNOWN_FIELDS = _UNREAD | set(_NEUTRAL)

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
# What templates, filled with what a user sent, end in: their own complaints, and those of Python about a value's type.
_FAILURES = (TemplateError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)


@dataclass(frozen=True)
class EncodedPrompt:
    """One prompt as token ids, and how many new tokens each of its candidates may have."""

    ids: list[int]
    max_new_tokens: int


class PromptReader:
    """Reads prompts for one model, with a tokenizer that no other thread uses. ``default`` is the server's own limit of tokens.

    Raises GatewayError, status 400, for what cannot be read: a template that refuses the messages, token ids that the model
    does not have, nothing at all, more than the context holds.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, default: int | None) -> None:
        self._model, self._tokenizer, self._default = model, tokenizer, default
        self._context: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        template = inspect.signature(tokenizer.apply_chat_template).parameters
        self._taken = {name for name, one in template.items() if one.kind is not one.VAR_KEYWORD} | {"messages"}

    def read(self, request: CompletionRequest) -> list[EncodedPrompt]:
        """Return the prompts of a request."""
        if taken := sorted(self._taken & set(request.template)):
            raise refused(f"chat_template_kwargs are for the chat template, and {taken[0]!r} is not", "chat_template_kwargs")
        return [self._read(prompt, request) for prompt in request.prompts]

    def _read(self, prompt: Any, request: CompletionRequest) -> EncodedPrompt:
        param = "messages" if request.chat else "prompt"
        if request.chat and not self._tokenizer.chat_template:
            raise refused("this model has no chat template: ask /v1/completions, with a prompt as text", param)
        try:
            ids = encode_prompt(self._tokenizer, self._messages(prompt) if request.chat else _whole(prompt), request.template)
        except _FAILURES as error:
            said = str(error)[:300].encode(errors="replace").decode()
            raise refused(f"the prompt cannot be read: {said}", param) from None
        if not ids:
            raise refused("the prompt is empty", param)
        try:
            check_vocabulary(vocabulary_size(self._model), ids, "the prompt")
        except ValueError as error:
            raise refused(str(error), param) from None
        return EncodedPrompt(ids, self._room(len(ids), request.max_tokens, param))

    def _room(self, length: int, wanted: int | None, param: str) -> int:
        """Return how many new tokens a candidate may have: by default what the context holds, up to 1,024."""
        room = max(DEFAULT_NEW_TOKENS, wanted or 0) if self._context is None else self._context - length
        if room < 1:
            raise refused(
                f"the prompt has {length} tokens, which leaves no room for a response: the model's context is {self._context}",
                param, "context_length_exceeded",
            )  # fmt: skip
        if wanted is not None and wanted > room and wanted != self._default:
            raise refused(
                f"max_tokens={wanted} and the prompt's {length} tokens are more than the model's context, {self._context}",
                "max_tokens", "context_length_exceeded",
            )  # fmt: skip
        return min(room, wanted or DEFAULT_NEW_TOKENS)

    def _messages(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return messages as templates take them: text, from roles that the model or OpenAI's API knows."""
        template = str(self._tokenizer.chat_template)
        read = []
        for place, message in enumerate(messages):
            role, content = message["role"], message.get("content")
            if role not in ROLES and repr(role) not in template and f'"{role}"' not in template:
                raise refused(f"messages.{place}.role must be one of {', '.join(ROLES)}, got {role!r}", f"messages.{place}.role")
            if role == "developer" and role not in template:
                role = "system"  # its older name
            if isinstance(content, list):
                content = "\n".join(_text(part, f"messages.{place}.content") for part in content)
            if content is None and not message.get("tool_calls"):
                raise refused(f"messages.{place}.content must be text, got nothing", f"messages.{place}.content")
            read.append({**message, "role": role, "content": _whole(content or "")})
        return read


def _whole(text: Any) -> Any:
    """Return a text as it is; raise ValueError for half a character, which JSON can write with an escape sequence."""
    if isinstance(text, str) and text.encode(errors="replace").decode() != text:
        raise ValueError("it holds half of a character, from \\ud800 to \\udfff")
    return text


def _text(part: Mapping[str, Any], param: str) -> str:
    if part["type"] != "text" or part.get("text") is None:
        raise refused(f"{param}: this model reads text, and no part of type {part['type']!r:.40}", param)
    return str(part["text"])


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
