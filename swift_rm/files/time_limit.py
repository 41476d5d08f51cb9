"""Call a function within a time limit: its value, its exception, or nothing in time."""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Generic, TypeVar

Value = TypeVar("Value")


@dataclass(frozen=True)
class CallOutcome(Generic[Value]):
    """What a call came to: its ``value``, or the ``error`` that it raised."""

    value: Value | None = None
    error: BaseException | None = None


class _TimeUp(BaseException):
    """The alarm, inside the call."""


def call_within(limit_s: float | None, function: Callable[[], Value]) -> CallOutcome[Value] | None:
    """Call a function; None if it took longer than ``limit_s`` seconds.

    In the main thread an alarm (SIGALRM) ends the call, even within a regular expression or a large power, which hold the
    interpreter's lock so that no other thread, and no Ctrl-C, would come to its turn. A function that sets alarms of its own
    replaces this one. Elsewhere, or where the alarm is somebody else's, it runs in a daemon thread, which is abandoned at
    the limit. None for ``limit_s`` waits for ever, in this thread.
    """
    if limit_s is None:
        return _attempt(function)
    return _with_alarm(limit_s, function) if _alarm_is_free() else _in_thread(limit_s, function)


def _attempt(function: Callable[[], Value]) -> CallOutcome[Value]:
    try:
        return CallOutcome(function())
    except _TimeUp:
        raise
    except BaseException as error:  # nothing is swallowed: the caller gets it, an interrupt included
        return CallOutcome(error=error)


def _alarm_is_free() -> bool:
    return (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
        and signal.getitimer(signal.ITIMER_REAL)[0] == 0
    )


def _with_alarm(limit_s: float, function: Callable[[], Value]) -> CallOutcome[Value] | None:
    waiting = True

    def expire(number: int, frame: FrameType | None) -> None:
        if waiting:  # an alarm that comes as the call returns is none
            raise _TimeUp

    try:
        previous = signal.signal(signal.SIGALRM, expire)
        try:
            signal.setitimer(signal.ITIMER_REAL, limit_s)
            return _attempt(function)
        finally:
            waiting = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
    except _TimeUp:
        return None


def _in_thread(limit_s: float, function: Callable[[], Value]) -> CallOutcome[Value] | None:
    done: queue.SimpleQueue[CallOutcome[Value]] = queue.SimpleQueue()
    threading.Thread(target=lambda: done.put(_attempt(function)), daemon=True).start()
    try:
        return done.get(timeout=limit_s)
    except queue.Empty:
        return None
