"""A request to vLLM's server: read the fields about rewards from its body, and say what vLLM is asked instead."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from swift_rm.integrations.vllm.worker.kept_scores import MOST_FINISHED
from swift_rm.integrations.vllm.worker.request_names import sample_names
from swift_rm.selection.rule_table import SERVED_RULES

FIELD_PREFIX, SELECT_FIELD = "swift_", "swift_select"
TRUE = {"true", "1", "1.0", "t", "y", "yes", "on"}  # what vLLM takes for it
TEXT = {"text", "input_text", "output_text", "refusal", "thinking"}  # parts of a message that are nothing but tokens


@dataclass(frozen=True)
class RewardRequest:
    """``body`` is what vLLM gets, under the id ``name``, which nothing else has; ``told`` is the id that the client gave, if any.

    The choices are ``n`` for each of ``prompts`` prompts, in the order of the rule ``select`` if there is one. ``rewarded`` are
    all but those whose reply would be another one with the token ids. ``text_only`` is a prompt whose token ids are all of it.
    """

    body: Mapping[str, Any]
    chat: bool
    name: str
    told: str | None
    n: int
    prompts: int
    select: str | None
    rewarded: bool
    wants_ids: bool
    text_only: bool

    @property
    def public_id(self) -> str:
        """Return the id that the client finds in the reply: what vLLM makes of the one it gave."""
        return self.name if self.told is None else f"{self.name.partition('-')[0]}-{self.told}"

    def names(self, choices: int | None = None) -> list[str]:
        """Return what the samples are called in the engine, in the order of their choices; of all, or the first ``choices``."""
        prompts = self.prompts if choices is None else math.ceil(choices / self.n)
        requests = [self.name] if self.chat else [f"{self.name}-{prompt}" for prompt in range(prompts)]
        return [name for request in requests for name in sample_names(request, self.n)]


class RefusedRequest(ValueError):
    """A request that vLLM does not get to see: one sentence, and the field ``param`` that it is about."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param

    def body(self) -> bytes:
        """Return it as vLLM words its own errors of status 400."""
        told = {"message": str(self), "type": "BadRequestError", "param": self.param, "code": 400}
        return json.dumps({"error": told}).encode()


def read_request(body: Mapping[str, Any], chat: bool, own: str, header: str | None) -> RewardRequest:
    """Read a body for which vLLM is given the id ``own`` in the place of the one in the client's ``header``, if there is one.

    Raises Refused for an unknown rule or field of ours, for beams, which are not samples, and for an order of choices that the
    client has before it is known, or whose texts begin with the prompt.
    """
    select = body.get(SELECT_FIELD)
    echo = not chat and _true(body.get("echo"))
    _check_reward_fields(body)
    if _true(body.get("use_beam_search")):
        raise RefusedRequest(
            "use_beam_search: beams are searched for, not sampled, and have no rewards: leave it out", "use_beam_search"
        )
    if select is not None and (echo or _true(body.get("stream"))):
        field = "echo" if echo else "stream"
        raise RefusedRequest(f"{SELECT_FIELD}={select!r} and {field} do not go together: leave one of them out", field)
    n, told = _count(body.get("n")), header or body.get("request_id")
    rewarded = 1 <= n <= MOST_FINISHED and not echo
    prompts = 1 if chat else _prompts(body.get("prompt")) + _prompts(body.get("prompt_embeds"))
    asked = {field: value for field, value in body.items() if field != SELECT_FIELD}
    return RewardRequest(
        {**asked, "return_token_ids": True} if rewarded else asked, chat, f"{'chatcmpl' if chat else 'cmpl'}-{own}",
        str(told) if told else None, n, prompts, select, rewarded, _true(body.get("return_token_ids")), _text_only(body),
    )  # fmt: skip


def refuse_reward_fields(body: Mapping[str, Any], why: str) -> None:
    """Raise Refused for a field of ours in a body: there are no rewards, and ``why``."""
    for field in body:
        if field.startswith(FIELD_PREFIX):
            raise RefusedRequest(f"{field}: this server gives no rewards: {why}", field)


def _check_reward_fields(body: Mapping[str, Any]) -> None:
    for field, value in body.items():
        if field.startswith(FIELD_PREFIX) and field != SELECT_FIELD:
            raise RefusedRequest(f"{field} is unknown here: the one field for rewards is {SELECT_FIELD}", field)
        if field == SELECT_FIELD and value is not None and value not in SERVED_RULES:
            raise RefusedRequest(f"{SELECT_FIELD}={value!r:.60} is no rule: the rules are {', '.join(SERVED_RULES)}", field)


def _true(value: Any) -> bool:
    return str(value).lower() in TRUE


def _count(n: Any) -> int:
    """Return n as vLLM reads it, or 0 where vLLM will say what is wrong with it."""
    try:
        return 1 if n is None else int(n)
    except (TypeError, ValueError, OverflowError):
        return 0


def _prompts(prompt: Any) -> int:
    if isinstance(prompt, list):
        return 1 if prompt and isinstance(prompt[0], int) else len(prompt)
    return int(prompt is not None)


def _text_only(body: Mapping[str, Any]) -> bool:
    """Tell whether the prompt is nothing but text or token ids."""
    messages = body.get("messages")
    contents = [one.get("content") for one in messages if isinstance(one, dict)] if isinstance(messages, list) else []
    parts = [part for content in contents if isinstance(content, list) for part in content]
    kinds = ["text" if isinstance(part, str) else part.get("type") if isinstance(part, dict) else None for part in parts]
    return (
        body.get("prompt_embeds") is None
        and TEXT.issuperset(kind for kind in kinds if isinstance(kind, str))
        and None not in kinds
    )
