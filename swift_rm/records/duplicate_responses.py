"""Refuse files and responses that are given twice: curves and votes would count them twice."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence

from swift_rm.records.rollouts import Rollout


def check_files_once(paths: Sequence[str]) -> None:
    """Raise ValueError that names a file given twice, under whatever name; what is not there is not compared."""
    there = [path for path in paths if os.path.exists(path)]
    for place, path in enumerate(there):
        for before in there[:place]:
            if os.path.samefile(before, path):
                raise ValueError(f"{path} is given twice{'' if before == path else f', first as {before}'}; give each file once")


def check_responses_once(read: Iterable[tuple[str, Rollout]]) -> None:
    """Raise ValueError, with their count and the first, if responses are there twice; ``read`` has each one with its file.

    A response is known by its question, by its number in the run, ``sample``, and by the run's settings, the seed among
    them, and model: runs with other seeds number their responses alike. Those without a number are not compared.
    """
    runs: dict[str, int] = {}
    seen: dict[tuple[str, int, str], str] = {}
    count, first = 0, ""
    for path, rollout in read:
        number = rollout.extra.get("sample")
        if number is None:
            continue
        run = runs.setdefault(json.dumps([rollout.sampling, rollout.model], sort_keys=True), len(runs))
        before = seen.get(key := (rollout.question_id, run, json.dumps(number)))
        if before is None:
            seen[key] = path
            continue
        count += 1
        where = f"in {before} and in {path}" if before != path else f"in {path}"
        first = first or f"response {key[2]:.40} of question {rollout.question_id!r}, {where}"
    if count:
        given = "responses are" if count > 1 else "response is"
        raise ValueError(f"{count} {given} given twice, and curves and votes would count them twice; the first is {first}")
