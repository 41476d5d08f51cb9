"""Find out with one small request what a server can do, before the work begins."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from swift_rm.api.endpoint import Endpoint
from swift_rm.api.failures import RequestRefused, UnusableReply
from swift_rm.api.reply import ApiResponse, read_reply

TOKENS = 8


@dataclass(frozen=True)
class Capabilities:
    """How many choices a server gives a request, at most as many as are wanted, and how many alternatives each token."""

    n: int
    alternatives: int


def logprob_fields(alternatives: int) -> dict[str, Any]:
    """Return what asks for log-probabilities."""
    return {"logprobs": True, **({"top_logprobs": alternatives} if alternatives else {})}


def probe(
    endpoint: Endpoint, messages: Sequence[Mapping[str, Any]], n: int, alternatives: int, request: Mapping[str, Any]
) -> Capabilities:
    """Ask for ``n`` short responses with so many alternatives of each token, and see what comes.

    Where so many are refused, one is asked for, then half as many until they are accepted; a server that gives one only is
    used nevertheless, with a warning. Raises RequestRefused, a ValueError, where it returns no log-probabilities or fewer
    alternatives, and whatever :meth:`Endpoint.ask` raises.
    """
    limit = request.get("max_tokens") or TOKENS
    small = {**request, **logprob_fields(alternatives), "max_tokens": min(limit, TOKENS)}
    why = "gives one choice where several are asked for"
    try:
        responses, given = _ask(endpoint, messages, n, small)
    except RequestRefused as error:
        if n == 1 or isinstance(error, UnusableReply):
            raise
        responses, given = _ask(endpoint, messages, 1, small)  # what is refused for another reason is refused again
        why, fewer = "refuses to give several choices", n // 2
        while fewer > 1 and given == 1:
            with suppress(RequestRefused):
                responses, given = _ask(endpoint, messages, fewer, small)
            fewer //= 2
    if given == 1 < n:
        warnings.warn(f"{endpoint.where} {why}: responses are asked for one by one, each with its prompt", stacklevel=4)
    found = _least(responses, alternatives)
    if found < alternatives:
        raise UnusableReply(
            f"{endpoint.where} returned {found} alternatives of a token where {alternatives} were asked for: sample with "
            f"--top-logprobs {found}, and train a reward model that reads as many (--top {found})"
        )
    return Capabilities(given, found)


def _ask(
    endpoint: Endpoint, messages: Sequence[Mapping[str, Any]], count: int, request: Mapping[str, Any]
) -> tuple[list[ApiResponse], int]:
    """Return the responses that can be read, and how many choices there were, malformed ones (a filtered one, say) too."""
    whole = {**request, "n": count} if count > 1 else request
    return endpoint.ask(messages, whole, lambda body: (read_reply(body, count, 0), min(count, len(body["choices"]))))


def _least(responses: Sequence[ApiResponse], alternatives: int) -> int:
    """Return how many alternatives every token has, at most as many as were asked for."""
    try:
        for response in responses:
            response.logprobs.alternatives(alternatives)
    except ValueError:
        return min(len(values) for response in responses for values in response.logprobs.top)
    return alternatives
