r"""Grade mathematics with math-verify: the program that ``MathGrader`` runs in processes of its own.

Run by its path and not imported, so that it starts without the rest of the package. It says "ready" on stdout, then
answers each line ``{"gold", "answer", "timeout_s"}`` on stdin with "right", "wrong" or "unparsable"; every message is
one line of JSON. It ends with its stdin, that is with its parent; while it is busy, an alarm ends it soon after the
time limit.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from functools import lru_cache
from typing import Any

MEMORY_BYTES = 4 << 30
ORPHAN_GRACE_S = 1.0


@lru_cache(maxsize=1024)
def read(text: str) -> list[Any]:
    """Parse an answer; all samples of a question share its parsed reference."""
    from math_verify import parse

    delimited = "$" in text or r"\(" in text or r"\[" in text
    found: list[Any] = parse(text if delimited else rf"\boxed{{{text}}}", parsing_timeout=None)
    return found


def grade(gold: str, answer: str) -> str:
    """Compare an answer with the reference, which comes first: ``verify`` is not symmetric."""
    from math_verify import verify

    found = read(answer)
    if verify(read(gold), found, timeout_seconds=None):
        return "right"
    # math-verify returns a text that it could not parse as itself.
    return "unparsable" if all(isinstance(item, str) for item in found) else "wrong"


def set_alarm(seconds: float) -> None:
    """Let the kernel end this process in some seconds (0: never), even inside a long computation in C, on POSIX."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


def limit_memory() -> None:
    """Make a huge power raise MemoryError, which math-verify takes for unparsable, instead of filling the machine."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def main() -> None:
    """Answer requests until stdin ends."""
    with os.fdopen(os.dup(1), "wb") as replies:
        os.dup2(2, 1)  # nothing that a library prints may pass for a reply

        def reply(message: object) -> None:
            replies.write(json.dumps(message).encode() + b"\n")
            replies.flush()

        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
        limit_memory()
        # math-verify's own time limits are off and it warns of it; MathGrader keeps the time.
        logging.disable(logging.CRITICAL)
        try:
            grade(r"\frac{1}{2}", "x")  # builds the grammars and patterns, which the first question should not pay for
        except ImportError as error:
            reply({"missing": str(error)})
            return
        reply("ready")
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        for line in sys.stdin.buffer:
            request = json.loads(line)
            set_alarm(request["timeout_s"] + ORPHAN_GRACE_S)
            verdict = grade(request["gold"], request["answer"])
            set_alarm(0)
            reply(verdict)


if __name__ == "__main__":
    main()
