"""Schedule the requests for n responses to each of many questions: several at once, results in the questions' order."""

from __future__ import annotations

import math
import queue
import threading
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Generic, TypeVar

from swift_rm.api.capability_probe import Capabilities, logprob_fields, probe
from swift_rm.api.endpoint import Endpoint
from swift_rm.api.failures import ApiFailure, FatalError, RequestRefused, UnusableReply
from swift_rm.api.reply import ApiResponse, read_reply
from swift_rm.files.json_lines import json_line
from swift_rm.files.time_limit import CallOutcome, call_within
from swift_rm.records.rollouts import Prompt
from swift_rm.sampling.generation import seed_for

AHEAD = 8  # questions begun before an earlier one is done, times the requests at once: these wait in memory
GIVE_UP = 16  # requests that failed in a row, each after all its retries: after that, no more are made
SEEDS = 2**31  # what every server takes for a seed
Task = TypeVar("Task")
Value = TypeVar("Value")


@dataclass
class RequestedQuestion:
    """One question: what its seeds are made of, its prompt, and the places of the responses that are to be drawn.

    ``responses`` are those that came, by place; ``reason`` says why others did not. ``pending`` are being asked for.
    """

    name: str
    prompt: Prompt
    places: Sequence[int]
    responses: dict[int, ApiResponse] = field(default_factory=dict)
    reason: str | None = None
    pending: set[int] = field(default_factory=set)

    @property
    def complete(self) -> bool:
        """Tell whether every response that was wanted is there."""
        return len(self.responses) == len(self.places)


@dataclass(frozen=True)
class _Task:
    """One request: for these places of a question, and, if it is accepted, for each of those ``then``."""

    question: int
    places: tuple[int, ...]
    then: tuple[int, ...] = ()


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


_Pool = RequestPool[_Task, list[ApiResponse]]


class RequestScheduler:
    """Ask for the responses to all questions, in requests for as many choices as the server gives at once.

    That is one request a question, or one a response, or something between.
    ``request`` is what every request says (temperature, say), ``alternatives`` how many each token is to have. Every request
    has a seed of its own, made of ``seed`` (None: no seed is sent), the question's name and its first response's place, so
    that a server that keeps to seeds answers a run that goes on as it would have answered one that was not stopped.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        questions: Sequence[RequestedQuestion],
        request: Mapping[str, Any],
        alternatives: int,
        seed: int | None,
    ) -> None:
        self.endpoint, self.questions, self.alternatives, self.seed = endpoint, questions, alternatives, seed
        self._request = dict(request)
        self._stopped = threading.Event()
        self._failed, self._reason = 0, ""  # requests in a row, and why the last one did

    def run(self) -> Generator[int, None, None]:
        """Probe the server, then yield the number of each question, in order, as soon as nothing of it is under way.

        A question that failed is yielded with what came, and the others go on; after :data:`GIVE_UP` failed requests in a
        row no more are made. Raises FatalError at once where no request can succeed, a wrong key say. Whatever ends the
        generator, ``questions`` have what came until then.
        """
        todo = [number for number, one in enumerate(self.questions) if one.places]
        if not todo:
            yield from range(len(self.questions))
            return
        capabilities = self._probe(todo)
        with RequestPool(self.endpoint.concurrency, self._draw) as pool:
            try:
                yield from self._in_order(pool, capabilities)
            finally:
                self._stopped.set()
                for task, outcome in pool.done():  # paid for, and perhaps the last there is
                    self.questions[task.question].responses.update(zip(task.places, outcome.value or [], strict=False))

    def _probe(self, todo: Sequence[int]) -> Capabilities:
        """Probe with the first question, and where that is refused (it may be too long) with the shortest of the others."""
        most = max(len(self.questions[number].places) for number in todo)
        first, *others = (as_messages(self.questions[number].prompt) for number in todo)
        try:
            return probe(self.endpoint, first, most, self.alternatives, self._request)
        except RequestRefused as error:
            if isinstance(error, UnusableReply) or not others:
                raise
        shortest = min(others, key=lambda prompt: len(json_line(prompt)))
        return probe(self.endpoint, shortest, most, self.alternatives, self._request)

    def _in_order(self, pool: _Pool, capabilities: Capabilities) -> Generator[int, None, None]:
        begun = 0
        for number in range(len(self.questions)):
            while begun <= number or self.questions[number].pending:
                ahead = number + AHEAD * self.endpoint.concurrency
                while begun < min(len(self.questions), ahead + 1) and pool.pending < 2 * self.endpoint.concurrency:
                    places = list(self.questions[begun].places)
                    self._put(pool, begun, [places[at : at + capabilities.n] for at in range(0, len(places), capabilities.n)])
                    begun += 1
                if self.questions[number].pending:
                    self._take(pool)
            yield number

    def _put(self, pool: _Pool, number: int, parts: Sequence[Sequence[int]], then: Sequence[int] = ()) -> None:
        for places in parts:
            if places:
                self.questions[number].pending.update(places, then)
                pool.put(_Task(number, tuple(places), tuple(then)))

    def _take(self, pool: _Pool) -> None:
        """Take in what came of one request, and ask for what it left out."""
        task, outcome = pool.get()
        one, error = self.questions[task.question], outcome.error
        one.pending.difference_update(task.places, task.then)
        self._failed = self._failed + 1 if isinstance(error, ApiFailure) else 0
        if self._failed >= GIVE_UP:
            self._stopped.set()
        if isinstance(error, RequestRefused) and not isinstance(error, UnusableReply) and len(task.places) > 1:
            self._put(pool, task.question, [task.places[:1]], task.places[1:])  # one at a time may be accepted
        elif isinstance(error, ApiFailure | RequestRefused):
            one.reason = self._reason = str(error)
        elif error is not None:
            raise error
        else:
            responses = outcome.value or []
            one.responses.update(zip(task.places, responses, strict=False))
            self._put(pool, task.question, [task.places[len(responses) :], *([place] for place in task.then)])

    def _draw(self, task: _Task) -> list[ApiResponse]:
        """Make one request."""
        if self._stopped.is_set():
            raise ApiFailure(self._reason)
        one, count = self.questions[task.question], len(task.places)
        request = {**self._request, **logprob_fields(self.alternatives)}
        if count > 1:
            request["n"] = count
        if self.seed is not None:
            request["seed"] = seed_for(self.seed, one.name, task.places[0]) % SEEDS
        responses = self.endpoint.ask(
            as_messages(one.prompt), request, lambda body: read_reply(body, count, self.alternatives), self._stopped
        )
        if any(self.endpoint.key.wholly_in(response.text) for response in responses):
            raise FatalError(f"{self.endpoint.where} sends the key back in its replies: it is not to be trusted")
        return responses

    def missing(self) -> int:
        """Return how many of the responses that were wanted are not there."""
        return sum(len(one.places) - len(one.responses) for one in self.questions)

    def commonest_reason(self) -> str:
        """Return why most questions that lack responses do."""
        reasons = Counter(one.reason for one in self.questions if one.reason)
        return reasons.most_common(1)[0][0] if reasons else "interrupted"


def sampling_fields(temperature: float, top_p: float, max_tokens: int | None) -> dict[str, Any]:
    """Return what every request says; raise ValueError for values that no sampler has, which not every server refuses."""
    if not 0 <= temperature < math.inf or not 0 < top_p <= 1 or (max_tokens is not None and max_tokens < 1):
        raise ValueError(
            "temperature must be at least 0, top_p above 0 and at most 1 and the limit of new tokens at least 1, got "
            f"{temperature}, {top_p} and {max_tokens}"
        )
    return {"temperature": temperature, "top_p": top_p, **({} if max_tokens is None else {"max_tokens": max_tokens})}


def as_messages(prompt: Prompt) -> list[dict[str, str]]:
    """Return a prompt as chat messages: text is a user's."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
