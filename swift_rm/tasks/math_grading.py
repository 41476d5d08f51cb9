"""MathGrader: grade mathematical answers with math-verify, in worker processes with real time limits.

Symbolic mathematics can hang or crash on what a model writes, inside C code where no Python signal or thread helps,
and math-verify's own limits only work in a main thread. So it runs in processes of its own, which are killed at the
limit and started again; messages are lines of JSON. It may be called from any thread.
"""

from __future__ import annotations

import importlib.util
import queue
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

from swift_rm.tasks.math_process import MATH_VERIFY_MISSING, MathProcess

MAX_CHARS = 2_000


def require_math_verify() -> None:
    """Raise ImportError with the remedy unless math-verify is installed."""
    if importlib.util.find_spec("math_verify") is None:
        raise ImportError(MATH_VERIFY_MISSING)


class MathGrader:
    """Grade answers against references with math-verify.

    ``timeout_s`` is for each pair. ``timeouts`` and ``crashes`` count the pairs whose worker had to be killed or died.
    Workers start when first needed and end with ``close``, with the grader or with this process.
    Raises ImportError if math-verify is missing, ValueError for a time limit or number of workers that is not positive.
    """

    def __init__(self, timeout_s: float = 5.0, workers: int = 1) -> None:
        if timeout_s <= 0 or workers < 1:
            raise ValueError(f"timeout_s and workers must be positive, got timeout_s={timeout_s}, workers={workers}")
        require_math_verify()
        self.timeout_s = timeout_s
        self.timeouts = 0
        self.crashes = 0
        self._workers = [MathProcess() for _ in range(workers)]
        self._idle: queue.LifoQueue[MathProcess] = queue.LifoQueue()  # one caller at a time starts only one worker
        for worker in self._workers:
            self._idle.put(worker)
        self._counting = threading.Lock()
        self._closed = False

    def __reduce__(self) -> tuple[type[MathGrader], tuple[float, int]]:
        return MathGrader, (self.timeout_s, len(self._workers))  # a copy elsewhere starts workers of its own

    @property
    def pids(self) -> list[int]:
        """Return the process ids of the workers that run."""
        return [pid for worker in self._workers if (pid := worker.pid) is not None]

    def grade(self, gold: str, answer: str) -> bool | None:
        """Tell whether ``answer`` equals the reference ``gold``; None if it is unparsable or took too long.

        The order matters: against the gold answer ``1 < x < 2``, ``(1, 2)`` is right, but not the other way round.
        Answers of more than 2,000 characters are not tried. Raises RuntimeError if the grader is closed or no worker
        starts.
        """
        if max(len(gold), len(answer)) > MAX_CHARS:
            return None
        worker = self._idle.get()
        try:
            if self._closed:
                raise RuntimeError("this MathGrader is closed")
            verdict = worker.ask({"gold": gold, "answer": answer, "timeout_s": self.timeout_s}, self.timeout_s)
        except (TimeoutError, EOFError) as error:
            if self._closed:
                raise RuntimeError("this MathGrader was closed while it graded") from error
            with self._counting:
                self.timeouts += isinstance(error, TimeoutError)
                self.crashes += isinstance(error, EOFError)
            return None
        finally:
            self._idle.put(worker)
        return {"right": True, "wrong": False}.get(str(verdict))

    def grade_many(self, pairs: Iterable[tuple[str, str]]) -> list[bool | None]:
        """Grade (gold, answer) pairs with all workers at once; the results keep the order."""
        with ThreadPoolExecutor(len(self._workers)) as threads:
            return list(threads.map(lambda pair: self.grade(*pair), pairs))

    def close(self) -> None:
        """End the workers; calling it again does nothing."""
        self._closed = True
        for worker in self._workers:
            worker.stop()

    def __enter__(self) -> MathGrader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
