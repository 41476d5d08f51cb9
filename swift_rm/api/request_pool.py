"""A few daemon threads that work on tasks and hand back what came of each, in the order in which they are done."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Generic, TypeVar

from swift_rm.files.time_limit import CallOutcome, call_within

Task = TypeVar("Task")
Value = TypeVar("Value")


class RequestPool(Generic[Task, Value]):
    """Call ``work`` on tasks in ``size`` threads; a context manager, whose end waits for nothing.

    The threads of `concurrent.futures` would be waited for when the interpreter ends: after Ctrl-C, for replies that nobody
    wants any more.
    """

    def __init__(self, size: int, work: Callable[[Task], Value]) -> None:
        self._size, self._work = size, work
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[Task, CallOutcome[Value]]] = queue.SimpleQueue()
        self._ended = False
        self.pending = 0  # tasks that were put in and have not come back

    def __enter__(self) -> RequestPool[Task, Value]:
        for _ in range(self._size):
            threading.Thread(target=self._run, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended = True
        for _ in range(self._size):
            self._tasks.put(None)

    def put(self, task: Task) -> None:
        """Have a task worked on as soon as a thread is free."""
        self.pending += 1
        self._tasks.put(task)

    def get(self) -> tuple[Task, CallOutcome[Value]]:
        """Wait for the next task that is done; return it with its value or error."""
        done = self._done.get()
        self.pending -= 1
        return done

    def done(self) -> list[tuple[Task, CallOutcome[Value]]]:
        """Return what is done already, without waiting for more."""
        return [self.get() for _ in range(self._done.qsize())]

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None and not self._ended:
            outcome = call_within(None, partial(self._work, task))
            self._done.put((task, outcome or CallOutcome()))
