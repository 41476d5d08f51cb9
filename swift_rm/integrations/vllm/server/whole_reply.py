"""Add each choice's reward to a whole reply of vLLM's server, and order the choices by a rule if the client asked for one."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from swift_rm.integrations.vllm.server.engine_calls import Prompts
from swift_rm.integrations.vllm.server.reward_request import RewardRequest
from swift_rm.integrations.vllm.worker.sample import FINISH_REASONS, Sample
from swift_rm.selection.rules import select
from swift_rm.tasks.answers import find_answer

FetchRewards = Callable[[Sequence[Sample], Prompts], Awaitable[list[dict[str, Any]]]]
IDS, PROMPT_IDS = "token_ids", "prompt_token_ids"


async def with_rewards(body: bytes, request: RewardRequest, rewards: FetchRewards) -> bytes:
    """Return the reply ``body`` with what ``rewards`` gives its choices, and without token ids that were not asked for."""
    reply = read_json(body)
    if not isinstance(reply, dict) or "choices" not in reply:
        return body  # so it is when the client has left
    reply["id"] = request.public_id
    if request.rewarded:
        choices, names = reply["choices"], request.names(len(reply["choices"]))
        samples = [
            Sample(
                names[place], place, list(choice.get(IDS) or ()), finish_reason=FINISH_REASONS.get(choice.get("finish_reason"))
            )
            for place, choice in enumerate(choices)
        ]
        prompts = [(reply if request.chat else choice).get(PROMPT_IDS) for choice in choices]
        for choice, fields in zip(choices, await rewards(samples, prompts), strict=True):
            choice.update(fields)
        if not request.wants_ids:
            hide_ids(reply)
        if request.select is not None:
            reply["choices"] = await asyncio.to_thread(order_choices, choices, request.n, request.select)
    return as_json(reply)


def order_choices(choices: Sequence[dict[str, Any]], n: int, rule: str) -> list[dict[str, Any]]:
    """Return each prompt's n choices with the one that ``rule`` chooses first, then by reward, numbered anew."""
    found = [choice for start in range(0, len(choices), n) for choice in _in_order(choices[start : start + n], rule)]
    return [{**choice, "index": index} for index, choice in enumerate(found)]


def hide_ids(reply: dict[str, Any]) -> None:
    """Make the token ids null, as vLLM says them to a client that does not ask for them."""
    for part in (reply, *reply["choices"]):
        part.update({key: None for key in (IDS, PROMPT_IDS) if key in part})


def read_json(text: bytes) -> Any:
    """Return what a text says that should be JSON, or None."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def as_json(value: Any) -> bytes:
    """Return JSON as vLLM writes it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", errors="replace")


def _in_order(choices: Sequence[dict[str, Any]], rule: str) -> list[dict[str, Any]]:
    rewards = [math.nan if choice["reward"] is None else choice["reward"] for choice in choices]
    order = sorted(range(len(choices)), key=lambda i: (math.isnan(rewards[i]), -rewards[i]))
    if not all(map(math.isnan, rewards)):
        chosen = select(rule, rewards, [find_answer(_text(choice)) for choice in choices]).index
        order = [chosen, *(i for i in order if i != chosen)]
    return [choices[i] for i in order]


def _text(choice: Mapping[str, Any]) -> str:
    return str((choice["message"].get("content") if "message" in choice else choice.get("text")) or "")
