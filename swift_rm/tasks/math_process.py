"""MathProcess: one worker process that runs math-verify, with a time limit that holds whatever it computes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from pathlib import Path

START_LIMIT_S = 120.0
MATH_VERIFY_MISSING = 'grading mathematics needs math-verify: pip install "swift-rm[math]"'


class MathProcess:
    """One worker process: started when it is asked, killed at the time limit, then started anew when next asked."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize[[subprocess.Popen[bytes], int], MathProcess] | None = None
        self._owner = 0

    @property
    def pid(self) -> int | None:
        """Return the process id, or None if no process runs."""
        process = self._process
        return None if process is None or process.poll() is not None else process.pid

    def ask(self, message: object, timeout_s: float) -> object:
        """Return the reply to a message; raise TimeoutError after the limit, EOFError if the worker dies over it."""
        if self._process is not None and (self._owner != os.getpid() or self._process.poll() is not None):
            self.stop()
        if self._process is None:
            self._start()
        return self._exchange(json.dumps(message).encode() + b"\n", timeout_s)

    def stop(self) -> None:
        """Kill the process, if this process started it."""
        self._process = None
        if self._end is not None:
            self._end()

    def _start(self) -> None:
        """Start the process and wait until it is ready: that time is not the first question's."""
        # Run by path: it needs nothing of this package, and what imported it (torch, a user's script) stays out of it.
        command = [sys.executable, "-P", str(Path(__file__).with_name("math_worker.py"))]
        modules = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": modules}
        )
        self._owner = os.getpid()
        self._end = weakref.finalize(self, _end_process, self._process, self._owner)
        try:
            greeting = self._exchange(b"", START_LIMIT_S)
        except (TimeoutError, EOFError) as error:
            reason = "it took too long" if isinstance(error, TimeoutError) else "it died, see its messages above"
            raise RuntimeError(f"the math-verify worker did not start ({reason}): {' '.join(command)}") from error
        if greeting != "ready":
            self.stop()
            raise ImportError(f"{MATH_VERIFY_MISSING} (its import failed: {greeting})")

    def _exchange(self, line: bytes, timeout_s: float) -> object:
        """Send a line and return the line that comes back, decoded."""
        process, expired = self._process, threading.Event()
        assert process is not None and process.stdin is not None and process.stdout is not None

        def expire() -> None:
            expired.set()
            process.kill()

        timer = threading.Timer(timeout_s, expire)  # the killed worker's stdout ends, which ends the wait below
        timer.daemon = True
        timer.start()
        reply = b""
        try:
            with suppress(OSError, ValueError):  # the worker died, or another thread closed the grader
                process.stdin.write(line)
                process.stdin.flush()
                reply = process.stdout.readline()
        finally:
            timer.cancel()
            timer.join()
            # A late kill, a death or an interrupt: the process is gone or has a reply under way that nobody awaits.
            if expired.is_set() or not reply.endswith(b"\n"):
                self.stop()
        if reply.endswith(b"\n"):
            return json.loads(reply)
        raise TimeoutError if expired.is_set() else EOFError


def _end_process(process: subprocess.Popen[bytes], owner: int) -> None:
    """Kill a worker process and reap it; a forked child of its owner leaves it alone."""
    if os.getpid() != owner:
        return
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):  # what a dead worker has not read cannot be flushed
            if pipe is not None:
                pipe.close()
