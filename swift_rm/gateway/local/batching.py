"""Batch the requests of many users: one thread takes the oldest, and those that go with it, as soon as it is free."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from swift_rm.decoding.engine import PromptState
from swift_rm.gateway.request.backend import Delta, PromptResult
from swift_rm.gateway.request.errors import ending

PADDING = 512  # tokens by which the prompts of a batch may differ: the shorter ones are padded to the longest
COLDEST = 1e-4  # below, logits divided by the temperature are no numbers any more


@dataclass(frozen=True)
class JobSampling:
    """How tokens are drawn, which is the same for all rows of a batch; ``temperature`` 0 takes the likeliest."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()

    def settings(self) -> dict[str, Any]:
        """Return it as `generate` takes it."""
        drawn: dict[str, Any] = {"do_sample": False}
        if self.temperature > 0:
            drawn = {"temperature": max(float(self.temperature), COLDEST), "top_p": float(self.top_p), "top_k": self.top_k}
        return {**drawn, "stop_strings": list(self.stop)} if self.stop else drawn


@dataclass(eq=False)
class Job:
    """One prompt with all its candidates, chosen by ``rule`` (None: returned as drawn), and where its answer goes.

    One with a ``seed`` has a batch of its own. ``on_delta`` is called with its text while it comes, from index ``first_index``
    on, in the engine's thread.
    """

    asked: PromptState
    sampling: JobSampling
    rule: str | None = None
    seed: int | None = None
    views: bool = False
    on_delta: Callable[[Delta], None] | None = None
    first_index: int = 0
    arrived: float = field(default_factory=time.monotonic)
    future: Future[PromptResult] = field(default_factory=Future)

    @property
    def rows(self) -> int:
        """Return its number of candidates."""
        return self.asked.n or 1

    def goes_with(self, other: Job) -> bool:
        """Tell whether it may share a batch with another."""
        alone = self.seed is not None or other.seed is not None
        apart = abs(len(self.asked.prompt_ids) - len(other.asked.prompt_ids))
        return not alone and self.sampling == other.sampling and apart <= PADDING

    def finish(self, answer: PromptResult) -> None:
        """Answer, unless nobody waits for it any more."""
        self.asked.cancelled = True  # also where memory runs out and the batch begins anew, nothing more is decoded for it
        with suppress(InvalidStateError):
            self.future.set_result(answer)

    def fail(self, error: BaseException) -> None:
        """Answer with an error, if there is no answer yet, and let go of what is decoded for it."""
        self.asked.cancelled = True
        with suppress(InvalidStateError):
            self.future.set_exception(error)


class BatchQueue:
    """A queue of jobs, and one thread that runs them batch by batch.

    The oldest job waits up to ``wait_s`` from its arrival for others to go with, unless they are ``rows`` candidates already;
    a job alone may have more. What ``run`` raises is, as ``explained``, the answer of that batch's jobs only.
    """

    def __init__(
        self, run: Callable[[Sequence[Job]], None], rows: int, wait_s: float, explained: Callable[[BaseException], BaseException]
    ) -> None:
        self._run, self._rows, self._wait_s, self._explained = run, rows, wait_s, explained
        self._queue: list[Job] = []
        self._running: Sequence[Job] = ()
        self._changed = threading.Condition()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="swift-rm-engine")
        self.closed = False

    def add(self, job: Job) -> None:
        """Queue a job; raise GatewayError after ``close``."""
        with self._changed:
            if self.closed:
                raise ending()
            self._queue.append(job)
            self._changed.notify()
            self._pool.submit(self._next).add_done_callback(self._ended)

    def cancel(self, job: Job) -> None:
        """Let go of a job: it is not begun, or its rows leave their batch at the next token."""
        with self._changed:
            job.asked.cancelled = True
            if job in self._queue:
                self._queue.remove(job)
                self._changed.notify()
        job.future.cancel()

    def close(self) -> None:
        """Cancel everything and wait for the thread to end."""
        with self._changed:
            self.closed = True
            for job in [*self._queue, *self._running]:
                job.fail(ending())
            self._queue.clear()
            self._changed.notify()
        self._pool.shutdown(cancel_futures=True)

    def _next(self) -> None:
        """Run a batch, if there is one: as often as this is called there was a job, so that none is left behind."""
        if jobs := self._take():
            self._run(jobs)

    def _ended(self, done: Future[None]) -> None:
        """Answer those that a failure left without an answer."""
        jobs, self._running = self._running, ()
        error = None if done.cancelled() else done.exception()
        answer = ending() if error is None else self._explained(error)
        for job in jobs:
            job.fail(answer)

    def _take(self) -> Sequence[Job]:
        with self._changed:
            while self._queue:
                jobs, full = self._matching()
                remaining = jobs[0].arrived + self._wait_s - time.monotonic()
                if full or remaining <= 0:
                    self._queue = [job for job in self._queue if job not in jobs]
                    self._running = [job for job in jobs if job.future.set_running_or_notify_cancel()]
                    return self._running
                self._changed.wait(remaining)
        return ()

    def _matching(self) -> tuple[list[Job], bool]:
        """Return the oldest job and those that go with it, oldest first, and whether there is no use in waiting for more."""
        first = self._queue[0]
        jobs, rows = [first], first.rows
        for job in self._queue[1:]:
            if not first.goes_with(job):
                continue
            if rows + job.rows > self._rows:
                return jobs, True
            jobs.append(job)
            rows += job.rows
        return jobs, rows >= self._rows or first.seed is not None
