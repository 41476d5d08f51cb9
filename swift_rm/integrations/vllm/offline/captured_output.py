"""What vLLM and its processes print: kept off the terminal, and searched for the reason when vLLM fails."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

# The last line of a logged traceback. The first such error is the cause: the processes above the one that failed say only that.
ERROR = re.compile(r"^(?:\(.*\) ERROR .*\] )?(?:\w+\.)*(?P<said>\w*(?:Error|Exception): .+)$", re.MULTILINE)


@contextmanager
def kept_off_the_terminal(show: bool = False) -> Iterator[None]:
    """Keep what is printed inside, by this process and its children, to itself; with ``show`` it goes to standard error.

    Standard output stays clean either way. If a RuntimeError comes from inside, RuntimeError is raised with the first error that
    was printed; if none was, all that was printed goes to standard error.
    """
    with tempfile.TemporaryFile() as file:
        sys.stdout.flush()
        sys.stderr.flush()
        before = [os.dup(number) for number in (1, 2)]
        into = [2 if show else file.fileno()] * 2
        for number, other in zip((1, 2), into, strict=True):
            os.dup2(other, number)
        try:
            yield
        except RuntimeError as error:
            file.seek(0)
            printed = file.read().decode(errors="replace")
            found = ERROR.search(printed)
            if found is None:
                os.write(before[1], printed.encode())
                raise
            raise RuntimeError(f"vLLM failed: {found['said']} (VLLM_LOGGING_LEVEL=INFO shows its log)") from error
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, other in zip((1, 2), before, strict=True):
                os.dup2(other, number)
                os.close(other)
