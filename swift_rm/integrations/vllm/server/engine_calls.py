"""Calls to a server's engine that end: with their result, or with a sentence where the engine dies, fails or is too slow."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from swift_rm.integrations.vllm.worker.sample import Sample

T = TypeVar("T")
LOOK_S = 0.25  # between looks at whether the engine lives: vLLM lets calls wait for one that is dead


class NoScores(Exception):
    """The engine gave no scores, and why."""


async def within(engine: Any, call: Coroutine[Any, Any, T], seconds: float) -> T:
    """Return what a ``call`` to the engine returns; raise NoScores if it dies, fails, or takes longer than ``seconds``."""
    loop = asyncio.get_running_loop()
    task, end = asyncio.ensure_future(call), loop.time() + seconds
    try:
        while not task.done():
            if engine.errored:
                raise NoScores("vLLM's engine died: its own log says why")
            if loop.time() >= end:
                raise NoScores(f"vLLM's engine did not answer within {seconds:g} s")
            await asyncio.wait((task,), timeout=min(LOOK_S, seconds))
    finally:
        task.cancel()
    error = task.exception()
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if error is not None:
        raise NoScores(f"vLLM's engine failed: {type(error).__name__}: {error}") from error
    return task.result()


async def take_scores(engine: Any, samples: Sequence[Sample], width: int, seconds: float) -> None:
    """Give samples the scores ``[places, width]`` that the worker has for them, and let it forget them; raise as `within`.

    A sample whose scores are not those of its tokens gets a fault in their place.
    """
    names = [sample.name for sample in samples]
    answers = await within(engine, engine.collective_rpc("take_scores", args=(names,)), seconds)
    found = next(answer for answer in answers if answer is not None)
    for sample, scores in zip(samples, found, strict=True):
        sample.give(scores, width)
