"""A backend that does as a test says, for tests of the app around it."""

from __future__ import annotations

import asyncio

from swift_rm.gateway.request.backend import Delta, ForwardedReply, PromptResult
from swift_rm.selection.candidates import Candidate


def candidate(text, reward=1.0, probability=0.75, tokens=3):
    return Candidate(text, list(range(tokens)), reward, probability, -0.5, "stop", text, None)


class ScriptedBackend:
    """Answers a prompt with ``candidates``; ``before`` is awaited first, and ``cancelled`` counts what was cancelled."""

    name = "plain"

    def __init__(self, candidates=None, forwards=False, rewards=True, before=None, pieces=("one ", "two")):
        self.candidates = candidates or [candidate("one two"), candidate("three", 0.5, 0.25)]
        self.forwards, self.rewards, self.before, self.pieces = forwards, rewards, before, pieces
        self.unwell, self.reply = None, ForwardedReply(200, "application/json", b'{"id": 1}')
        self.asked, self.bodies, self.cancelled, self.begun = [], [], 0, 0

    def start(self):
        pass

    def reload(self):
        return "scripted"

    async def close(self):
        pass

    def ignored(self, asking):
        return sorted(asking.others)

    async def health(self):
        return self.unwell

    async def _ready(self):
        self.begun += 1
        try:
            if self.before is not None:
                await self.before()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def answer(self, asking, views=False):
        self.asked.append(asking)
        await self._ready()
        drawn = [self.candidates[i % len(self.candidates)] for i in range(asking.drawn)]
        return [PromptResult(5, sum(len(one.token_ids) for one in drawn), asking.drawn, drawn) for _ in asking.prompts]

    async def live(self, asking):
        self.asked.append(asking)
        for index in range(asking.returned * len(asking.prompts)):
            for piece in self.pieces:
                yield Delta(index, piece)
                await self._ready()
            yield Delta(index, "", candidate("".join(self.pieces)), 5)

    async def forward(self, path, body, stream):
        self.bodies.append((path, body, stream))
        await self._ready()
        return self.reply
