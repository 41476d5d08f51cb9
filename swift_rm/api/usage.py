"""What an endpoint was asked for and what it cost, in tokens."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

LARGEST = 10**12  # tokens; a reply that reports more is mistaken


@dataclass
class Usage:
    """Requests sent, those of them that were made again, and the tokens of their prompts and replies.

    Where a reply has more log-probabilities than the completion tokens that it reports (llama.cpp reports one choice of n),
    these are counted. ``unreported`` replies did not say what they cost: their prompts are not counted. Several threads may
    count.
    """

    requests: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unreported: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def count_request(self, again: bool) -> None:
        """Count a request."""
        with self._lock:
            self.requests += 1
            self.retries += again

    def count_reply(self, body: Any) -> None:
        """Count a reply."""
        told = body.get("usage") if isinstance(body, dict) else None
        prompt, completion = (_count(told, f"{kind}_tokens") for kind in ("prompt", "completion"))
        with self._lock:
            self.unreported += prompt is None or completion is None
            self.prompt_tokens += prompt or 0
            self.completion_tokens += max(completion or 0, _tokens_in(body))

    def to_dict(self) -> dict[str, int]:
        """Return the counts by name."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


def _count(told: Any, key: str) -> int | None:
    value = told.get(key) if isinstance(told, dict) else None
    return value if type(value) is int and 0 <= value <= LARGEST else None


def _tokens_in(body: Any) -> int:
    """Count the tokens whose log-probabilities a reply has, whatever else it is."""
    choices = body.get("choices") if isinstance(body, dict) else None
    found = 0
    for choice in choices if isinstance(choices, list) else ():
        logprobs = choice.get("logprobs") if isinstance(choice, dict) else None
        content = logprobs.get("content") if isinstance(logprobs, dict) else None
        found += len(content) if isinstance(content, list) else 0
    return found
