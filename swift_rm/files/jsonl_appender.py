"""Append whole lines to a JSONL file so that a run killed at any moment resumes without loss or repeats."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType


class LineAppender:
    """Hold a file for appending, alone; half a last line, which a killed run left, is cut off on entry.

    Every line starts with ``begins``, by which half a line is known; a file that ends in anything else raises ValueError
    and is not touched.
    Lines are written with one call, fsynced, and taken back whole if the disk refuses part of them. Raises
    BlockingIOError with one sentence if another run holds the file. A context manager.
    """

    def __init__(self, path: str | Path, begins: str) -> None:
        self.path, self.begins = Path(path), begins.encode()
        self._descriptor: int | None = None

    def __enter__(self) -> LineAppender:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._mend_last_line(descriptor)
        except BlockingIOError:
            os.close(descriptor)
            raise BlockingIOError(f"another run is writing {self.path}; wait for it or choose another file") from None
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)  # releases the lock
            self._descriptor = None

    def _mend_last_line(self, descriptor: int) -> None:
        end = os.fstat(descriptor).st_size
        start = _end_of_last_line(descriptor)
        if start == end:
            return
        rest = os.pread(descriptor, end - start, start)
        if not (rest.startswith(self.begins) or self.begins.startswith(rest)):
            raise ValueError(
                f"{self.path} ends in {rest[:40]!r}, which is no part of a record: it is not touched, choose another file"
            )
        try:
            json.loads(rest)
        except ValueError:
            os.ftruncate(descriptor, start)
        else:  # whole, only its end of line was lost
            os.pwrite(descriptor, b"\n", end)

    def append(self, lines: Sequence[str]) -> None:
        """Append lines, all or none; raise OSError that says how to go on if they could not be written."""
        if self._descriptor is None:
            raise RuntimeError(f"{self.path} is not open: use LineAppender as a context manager")
        end = os.lseek(self._descriptor, 0, os.SEEK_END)
        data = memoryview("".join(line + "\n" for line in lines).encode())
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
            os.fsync(self._descriptor)
        except BaseException as error:
            os.ftruncate(self._descriptor, end)
            if isinstance(error, OSError):
                raise OSError(
                    error.errno,
                    f"could not write {self.path} ({error.strerror}); what was there is kept, the same call resumes",
                ) from error
            raise


def _end_of_last_line(descriptor: int) -> int:
    position = os.fstat(descriptor).st_size
    while position:
        start = max(0, position - 65536)
        found = os.pread(descriptor, position - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        position = start
    return 0
