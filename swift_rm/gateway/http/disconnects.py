"""Cancel the work for a request whose client has disconnected, or whose time is over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, TypeVar

from swift_rm.gateway.request.errors import GatewayError, ending

T = TypeVar("T")
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class ClientGone(Exception):
    """The client left before its reply was complete."""


async def run_while_connected(receive: Receive, work: Coroutine[Any, Any, T], seconds: float | None = None) -> T:
    """Return what ``work`` returns, or raise what it raises; end it first if the client leaves or ``seconds`` are over.

    ``receive`` is that of a request whose body has been read. Raises ClientGone, or GatewayError 504. No task is left behind.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_leaving(receive))
    try:
        await asyncio.wait((task, gone), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task_result(task)
        if gone.done():
            raise ClientGone
        raise timeout_error(seconds or 0.0)
    finally:
        await cancel_all(task, gone)


def task_result(task: asyncio.Future[T]) -> T:
    """Return what a task that is done returned, or raise what it raised: GatewayError 503 if others cancelled it."""
    if task.cancelled():
        raise ending()
    return task.result()


async def cancel_all(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks and wait until they have ended, however they do."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def timeout_error(seconds: float) -> GatewayError:
    """Return the error of a request that took longer than it may."""
    return GatewayError(
        504, f"no reply within {seconds:g} s, which is all a request may take here: ask for fewer tokens or candidates",
        code="timeout",
    )  # fmt: skip


async def _leaving(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
