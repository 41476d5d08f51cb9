"""Write files whole: to a temporary name, fsynced and renamed, so that no reader ever sees half a file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path


def write_whole(path: str | Path, data: str | bytes | memoryview) -> None:
    """Write ``data`` to ``path`` all or nothing; a failure (disk full, say) leaves the old file as it was."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(data.encode() if isinstance(data, str) else data)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def check_writable(path: str | Path, inputs: Iterable[str | Path | None] = ()) -> None:
    """Make the folder of a file that long work is to write; raise OSError now if it could not be written then.

    Raises ValueError if it is one of the ``inputs``, which are to be read (None: none), and which writing would replace.
    """
    given, path = path, Path(path).resolve()
    if any(one is not None and (Path(one).resolve() == path or _same_file(one, path)) for one in inputs):
        raise ValueError(f"{given} is a file to read, which writing would replace; choose another")
    if path.is_dir():
        raise IsADirectoryError(f"{given} is a folder, so no file can be written there")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise OSError(f"{given} cannot be written: {error.strerror}") from error


def _same_file(one: str | Path, other: Path) -> bool:
    return os.path.exists(one) and other.exists() and os.path.samefile(one, other)
