"""The clients of benchmarks/gateway/gateway.py, and what they check: that no reply is lost, or another's."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx2

from swift_rm import score

CHAT = "/v1/chat/completions"
NEAR = 1e-3  # between a reply's reward and that of the same tokens after the client's own question


@dataclass(frozen=True)
class Reply:
    """What came for a question: the status (0: nothing), the JSON and the seconds it took."""

    question: str
    status: int
    body: Any
    seconds: float


async def ask(client: httpx2.AsyncClient, model: str, question: str, **more: Any) -> Reply:
    """Send one question and wait for what comes."""
    body = {"model": model, "messages": [{"role": "user", "content": question}], "return_token_ids": True, **more}
    start = time.perf_counter()
    try:
        got = await client.post(CHAT, json=body)
        return Reply(question, got.status_code, got.json(), time.perf_counter() - start)
    except (httpx2.HTTPError, ValueError):
        return Reply(question, 0, None, time.perf_counter() - start)


async def closed_loop(address: str, clients: int, model: str, questions: Iterator[str], seconds: float | None) -> list[Reply]:
    """Have so many clients ask one question after another, until ``questions`` end or ``seconds`` are over."""
    replies: list[Reply] = []
    until = time.perf_counter() + (seconds or float("inf"))

    async def one(client: httpx2.AsyncClient) -> None:
        for question in questions:  # shared: each takes the next
            replies.append(await ask(client, model, question))
            if time.perf_counter() > until:
                return

    async with opened(address, clients) as client:
        await asyncio.gather(*(one(client) for _ in range(clients)))
    return replies


async def burst(address: str, count: int, model: str, questions: Sequence[str]) -> list[Reply]:
    """Send so many requests at the same time."""
    async with opened(address, count) as client:
        return await asyncio.gather(*(ask(client, model, q) for q, _ in zip(cycle(questions), range(count), strict=False)))


def opened(address: str, connections: int) -> httpx2.AsyncClient:
    """Return a client with as many connections as it needs, and patience."""
    limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
    return httpx2.AsyncClient(base_url=address, limits=limits, timeout=300, trust_env=False)


def mixed(replies: Sequence[Reply], own: tuple[Any, Any, Any]) -> dict[str, int]:
    """Count the replies whose reward is not that of their tokens after the question that was asked: they are another's.

    ``mixed_if_swapped`` are those of which this would be noticed, were every reply given to the client of the next question.
    """
    choices = [reply.body["choices"][0] for reply in replies]
    asked = [[{"role": "user", "content": reply.question}] for reply in replies]

    def wrong(questions: Sequence[Any]) -> int:
        rewards = score(*own, questions, [choice["token_ids"] for choice in choices], batch_size=256)
        return sum(abs(reward - choice["reward"]) > NEAR for reward, choice in zip(rewards, choices, strict=True))

    return {"mixed": wrong(asked), "mixed_if_swapped": wrong([*asked[1:], asked[0]])}


async def sampled_rss(pid: int, every_s: float, sizes: list[tuple[float, int]]) -> None:
    """Append the process's resident memory in bytes, with the time, until cancelled."""
    while True:
        fields = Path(f"/proc/{pid}/status").read_text()
        sizes.append((time.perf_counter(), 1024 * int(re.findall(r"VmRSS:\s+(\d+)", fields)[0])))
        await asyncio.sleep(every_s)


def growth(sizes: Sequence[tuple[float, int]]) -> float:
    """Return by what share memory grew from the second quarter of the time to the last."""
    start, end = sizes[0][0], sizes[-1][0]

    def mean(first: float, last: float) -> float:
        values = [size for at, size in sizes if first <= (at - start) / max(end - start, 1e-9) <= last]
        return sum(values) / len(values)

    return mean(0.75, 1.0) / mean(0.25, 0.5) - 1
