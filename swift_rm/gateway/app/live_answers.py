"""A plain response while it is generated: its pieces as chunks, and at the end what an answer would tell."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from swift_rm.gateway.http.replies import Replies
from swift_rm.gateway.request.backend import Answer, Delta
from swift_rm.gateway.request.request import Asking
from swift_rm.selection.candidates import Candidate


class LiveAnswers:
    """Turns the deltas of one request into chunks, and keeps the candidates with which they end."""

    def __init__(self, asking: Asking, replies: Replies) -> None:
        self.asking, self.replies = asking, replies
        self._begun: set[int] = set()
        self._prompt_tokens: dict[int, int] = defaultdict(int)
        self._candidates: dict[int, Candidate] = {}

    def chunks(self, delta: Delta) -> Iterator[dict[str, Any]]:
        """Yield the chunks that tell a delta: the first of a choice says the role, the last how it ended."""
        prompt = delta.index // self.asking.returned
        self._prompt_tokens[prompt] = max(self._prompt_tokens[prompt], delta.prompt_tokens)
        begin = delta.index not in self._begun
        self._begun.add(delta.index)
        if begin or (delta.text and delta.candidate is None):
            yield self.replies.chunk(delta.index, "" if delta.candidate else delta.text, begin)
        if delta.candidate is not None:
            self._candidates[delta.index] = delta.candidate
            yield self.replies.last(delta)

    def answers(self) -> list[Answer]:
        """Return what has been answered, a prompt each."""
        n = self.asking.returned
        found = []
        for prompt in range(len(self.asking.prompts)):
            candidates = [self._candidates[prompt * n + i] for i in range(n)]
            tokens = sum(len(one.token_ids) for one in candidates)
            found.append(Answer(self._prompt_tokens[prompt], tokens, n, candidates))
        return found
