"""Read a file of one JSON object a line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_SURROGATE = re.compile("[\ud800-\udfff]")


def iter_json_lines(path: str | Path) -> Iterator[tuple[int, dict[str, Any] | ValueError]]:
    """Yield line number and object, or the error, of each line that is not blank."""
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode())
            except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError too
                yield number, ValueError(f"{path}:{number}: not valid JSON: {error}")
                continue
            yield number, record if isinstance(record, dict) else ValueError(f"{path}:{number}: not a JSON object")


def read_json_lines(path: str | Path) -> list[tuple[int, dict[str, Any]]]:
    """Read line numbers and objects; raise ValueError with file and line for a line that is none, or if there are none."""
    records = []
    for number, record in iter_json_lines(path):
        if isinstance(record, ValueError):
            raise record
        records.append((number, record))
    if not records:
        raise ValueError(f"{path} holds no records")
    return records


def json_line(record: Any) -> str:
    """Write a value as one line of JSON that UTF-8 can carry: in its own letters, unless half a surrogate pair is among them."""
    line = json.dumps(record, ensure_ascii=False, allow_nan=False)
    return line if line.isascii() or not _SURROGATE.search(line) else json.dumps(record)
