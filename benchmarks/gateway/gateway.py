"""The gateway under load: replies lost or mixed up, its throughput beside the bare engine's, what it adds, what it keeps.

64 clients ask `swift-best-of-16` of the tiny reasoner for two minutes. Every reply's reward is computed again from its token
ids after the client's own question: a reply to another question would not have it. ``throughput_share_of_engine`` compares
the gateway with `best_of_n` on the same questions, in turn (median of the rounds). ``rejected_429`` are those of a burst of
four times what the gateway takes in at once; ``over_limit_other`` those of the burst answered otherwise than 200 or 429.
``added_latency_ms`` is what a request that passes through takes longer than one sent to the upstream, which answers at once,
itself. ``rss_growth_share`` compares the last quarter of the load with the second.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from itertools import cycle
from typing import Any

import httpx2
import numpy as np
import torch

from benchmarks.gateway.clients import CHAT, Reply, ask, burst, closed_loop, growth, mixed, opened, sampled_rss
from benchmarks.gateway.servers import fixed_upstream, gateway
from benchmarks.recorder import arguments, finish
from swift_rm import SwiftRewardModel, best_of_n
from swift_rm.evaluation.intervals import Resamples
from swift_rm.gateway.request.settings import Settings
from swift_rm.models.load import TINY, TINY_REWARD, load_language_model, resolve
from swift_rm.tasks.homework import HomeworkTask

N, QUEUE = 16, 96  # candidates, requests taken in at once
BEST = f"swift-best-of-{N}"
SUFFIXES = (TINY, "swift-best-of-4", "swift-best-of-16", "swift-vote-8", "swift-vote-16", "swift-shrunk-16")
Own = tuple[Any, Any, Any]  # language model, tokenizer and reward model, for what is compared with the gateway


def main() -> None:
    """Load, compare and count; print or write the figures."""
    args = arguments(__doc__)
    clients, seconds, rounds, questions, pairs = (16, 4.0, 1, 24, 50) if args.quick else (64, 120.0, 4, 192, 1000)
    task = HomeworkTask("test")
    asked = list(task.questions(questions, seed=5))
    texts = [question.prompt[0]["content"] for question in asked]
    own = (*load_language_model(TINY, progress=False), SwiftRewardModel.from_pretrained(resolve(TINY_REWARD)))
    result: dict[str, Any] = {"clients": clients, "seconds": seconds, "questions": questions, "n": N}
    local = ("--model", TINY, "--reward-model", TINY_REWARD, "--queue", str(QUEUE))
    with gateway(*local) as (address, pid):
        result |= asyncio.run(loaded(address, pid, clients, seconds, texts, own))
        result |= asyncio.run(refused(address, texts, QUEUE + 20 if args.quick else 4 * QUEUE))
        result |= throughput(address, clients, rounds, asked, own)
        result["accuracy"] = accuracy(address, clients, task, asked, own)
        result["suffixes"] = {
            name: asyncio.run(cost(address, clients, name, task, asked)) for name in SUFFIXES[:: 5 if args.quick else 1]
        }
    with fixed_upstream() as upstream, gateway("--model", "fixed", "--upstream", upstream) as (address, _):
        result |= asyncio.run(added(upstream, address, pairs))
    finish("gateway", args, result)


async def loaded(address: str, pid: int, clients: int, seconds: float, texts: Sequence[str], own: Own) -> dict[str, Any]:
    """Ask from many clients at once; count what was lost or mixed up, and watch the server's memory."""
    sizes: list[tuple[float, int]] = []
    watching = asyncio.create_task(sampled_rss(pid, 0.25, sizes))
    replies = await closed_loop(address, clients, BEST, cycle(texts), seconds)
    watching.cancel()
    came = [reply for reply in replies if reply.status == 200]
    return {
        "requests": len(replies), "lost": len(replies) - len(came), **mixed(came, own),
        "requests_per_second": round(len(came) / seconds, 2), "rss_growth_share": round(growth(sizes), 4),
        "rss_mib": round(sizes[-1][1] / 2**20), "latency_s": _quantiles(came),
    }  # fmt: skip


async def refused(address: str, texts: Sequence[str], count: int) -> dict[str, Any]:
    """Send more than is taken in at once, and count the statuses."""
    statuses = Counter(reply.status for reply in await burst(address, count, BEST, texts))
    other = sum(count for status, count in statuses.items() if status not in (200, 429))
    return {"burst": count, "queue": QUEUE, "rejected_429": statuses[429], "burst_answered": statuses[200],
            "over_limit_other": other}  # fmt: skip


def throughput(address: str, clients: int, rounds: int, asked: Sequence[Any], own: Own) -> dict[str, Any]:
    """Answer the same questions by the engine alone and through the gateway, in turn; return the shares of the throughput.

    It is counted in tokens drawn per second: the samples differ, and with them their lengths. The engine is `best_of_n` as it is
    called without more ado; then with batches as large as the gateway's; then with as many threads, too.
    """
    prompts, texts = [question.prompt for question in asked], [question.prompt[0]["content"] for question in asked]
    cores, rows = torch.get_num_threads(), Settings.batch_rows // N
    engines = {"": (8, cores), "_with_equal_batches": (rows, cores), "_with_equal_batches_and_threads": (rows, max(1, cores - 1))}
    rates: dict[str, list[float]] = {name: [] for name in ("gateway", *engines)}
    for seed in range(-1, rounds):  # the first round warms both up
        for name, (batch, threads) in engines.items():
            torch.set_num_threads(threads)
            start = time.perf_counter()
            bare = best_of_n(*own, prompts, N, "best", batch_size=batch, seed=seed + 1)
            rates[name].append(sum(result.tokens_spent for result in bare) / (time.perf_counter() - start))
        torch.set_num_threads(cores)
        start = time.perf_counter()
        replies = asyncio.run(closed_loop(address, clients, BEST, iter(texts), None))
        rates["gateway"].append(
            sum(reply.body["usage"]["completion_tokens"] for reply in replies) / (time.perf_counter() - start)
        )
    told: dict[str, Any] = {}
    for name in engines:
        shares = [through / engine for through, engine in zip(rates["gateway"][1:], rates[name][1:], strict=True)]
        told[f"throughput_share_of_engine{name}"] = round(statistics.median(shares), 3)
        told[f"throughput_share_of_engine{name}_rounds"] = [round(share, 3) for share in shares]
    return told | {
        f"tokens_per_second_{name or 'engine'}".replace("__", "_"): round(statistics.median(values[1:]))
        for name, values in rates.items()
    }


def accuracy(address: str, clients: int, task: Any, asked: Sequence[Any], own: Own) -> dict[str, Any]:
    """Return what the gateway and `best_of_n` get right of the same questions, and the difference, over questions."""
    replies = asyncio.run(closed_loop(address, clients, BEST, iter([q.prompt[0]["content"] for q in asked]), None))
    own = best_of_n(*own, [question.prompt for question in asked], N, "best", seed=1000)
    through = right(task, asked, replies)
    bare = np.array([float(task.grade(q, result.best.text).label or 0) for q, result in zip(asked, own, strict=True)])
    return {"gateway": _interval(through), "best_of_n": _interval(bare), "gateway-best_of_n": _interval(through - bare)}


async def cost(address: str, clients: int, name: str, task: Any, asked: Sequence[Any]) -> dict[str, Any]:
    """Return what a model's name costs: tokens and seconds of a lone request, requests a second from all clients."""
    texts = [question.prompt[0]["content"] for question in asked]
    async with opened(address, 1) as client:
        alone = [await ask(client, name, text) for text in texts[: min(32, len(texts) // 4)]]
    start = time.perf_counter()
    replies = await closed_loop(address, clients, name, iter(texts), None)
    seconds = time.perf_counter() - start
    tokens = statistics.mean(reply.body["usage"]["completion_tokens"] for reply in replies)
    return {
        "accuracy": _interval(right(task, asked, replies)), "tokens_per_request": round(tokens, 1),
        "alone_ms": round(1000 * statistics.median(reply.seconds for reply in alone), 1),
        "requests_per_second": round(len(replies) / seconds, 1),
    }  # fmt: skip


async def added(upstream: str, address: str, pairs: int) -> dict[str, Any]:
    """Send the same request to the upstream itself and through the gateway, in turn, over connections that stay open."""
    body = {"model": "fixed", "messages": [{"role": "user", "content": "What is 17 * 23?"}], "temperature": 0.0}
    times: dict[str, list[float]] = {"direct": [], "through": []}
    async with opened(upstream.removesuffix("/v1"), 1) as direct, opened(address, 1) as through:
        for i in range(-20, pairs):
            replies = []
            for name, client in (("direct", direct), ("through", through))[:: 1 if i % 2 else -1]:
                start = time.perf_counter()
                reply = await _post(client, body)
                if i >= 0:
                    times[name].append(time.perf_counter() - start)
                replies.append(reply)
            if replies[0] != replies[1]:
                raise RuntimeError(f"what passed through differs from what the upstream says: {replies}")
    differences = sorted(b - a for a, b in zip(times["direct"], times["through"], strict=True))
    return {
        "added_latency_ms": round(1000 * statistics.median(differences), 3),
        "added_latency_ms_p95": round(1000 * differences[int(0.95 * len(differences))], 3),
        "direct_ms": round(1000 * statistics.median(times["direct"]), 3), "pairs": pairs,
    }  # fmt: skip


async def _post(client: httpx2.AsyncClient, body: Any) -> bytes:
    reply = await client.post(CHAT, json=body)
    reply.raise_for_status()
    return reply.content


def right(task: Any, asked: Sequence[Any], replies: Sequence[Reply]) -> Any:
    """Return which questions' first choices are right, [Q] of 0 and 1, in the questions' order."""
    said = {reply.question: reply.body["choices"][0]["message"]["content"] for reply in replies}
    return np.array([float(task.grade(q, said[q.prompt[0]["content"]]).label or 0) for q in asked])


def _interval(values: Any) -> dict[str, float]:
    resamples = Resamples(len(values))
    return resamples.interval(resamples.ratio(np.asarray(values, dtype=float))).to_dict()


def _quantiles(replies: Sequence[Reply]) -> dict[str, float]:
    found = np.quantile([reply.seconds for reply in replies], [0.5, 0.95, 1.0])
    return dict(zip(("median", "p95", "largest"), np.round(found, 3).tolist(), strict=True))


if __name__ == "__main__":
    main()
