"""What a file of rollouts holds already, by question and number: only places are in memory, so that any file can be resumed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from swift_rm.records.rollouts import Rollout, iter_rollouts

Key = tuple[str, Any]  # the question's id, and the response's number


class StoredRollouts:
    """The rollouts of the file ``path`` (None: of none), each passed to ``check`` once; the last of those with one key counts.

    Raises ValueError with file and line for a line that is none, and whatever ``check`` raises.
    """

    def __init__(self, path: str | Path | None, check: Callable[[Rollout], None]) -> None:
        self._path = path
        self._places: dict[Key, int] = {}
        if path is None:
            return
        for place, rollout in zip(_line_places(path), iter_rollouts(path), strict=True):
            check(rollout)
            self._places[rollout.question_id, rollout.extra.get("sample")] = place

    def __contains__(self, key: Key) -> bool:
        return key in self._places

    def read(self, keys: Sequence[Key]) -> list[Rollout]:
        """Read those of the keys that are there, in their order."""
        places = [self._places[key] for key in keys if key in self._places]
        if not places or self._path is None:
            return []
        with open(self._path, "rb") as file:
            found = []
            for place in places:
                file.seek(place)
                found.append(Rollout.from_dict(json.loads(file.readline())))
            return found


def _line_places(path: str | Path) -> Iterator[int]:
    """Yield where each line begins that is not blank."""
    place = 0
    with open(path, "rb") as lines:
        for line in lines:
            if line.strip():
                yield place
            place += len(line)
