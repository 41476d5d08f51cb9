"""What a thread has to tell a coroutine, in order; the loop is woken once for all that has come since it last looked."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Mailbox(Generic[Item]):
    """Made and emptied in a running loop, filled from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: deque[Item] = deque()
        self._woken, self._wake = False, asyncio.Event()

    def put(self, item: Item) -> None:
        """Add an item; where the loop has ended, nobody is there to read it."""
        self._items.append(item)
        if not self._woken:
            self._woken = True
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._wake.set)

    async def take(self) -> list[Item]:
        """Wait for items and return all that are there."""
        await self._wake.wait()
        self._wake.clear()
        self._woken = False  # before the box is emptied, so that what comes meanwhile wakes the loop again
        items = []
        while self._items:
            items.append(self._items.popleft())
        return items
