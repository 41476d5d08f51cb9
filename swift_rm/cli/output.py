"""What a command gives back to `main`, and how its figures are listed."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swift_rm.records.rollouts import Rollout


@dataclass(frozen=True)
class Result:
    """What a command prints: a text, or with ``--json`` its data (None: nothing more).

    ``ok`` False makes the exit code 1, and so does ``failed``, a sentence on what is missing; ``stopped`` is the sentence
    that follows a Ctrl-C, and makes it 130.
    """

    text: str
    data: Any
    ok: bool = True
    stopped: str | None = None
    failed: str | None = None


def count_samples(batches: Iterable[list[Rollout]]) -> Counter[str]:
    """Sample all of the batches; return how many responses there are, and of which kinds."""
    counts: Counter[str] = Counter(
        dict.fromkeys(("responses", "right", "not_right", "ungraded", "unparsable", "cut_at_length"), 0)
    )
    for rollouts in batches:
        counts["responses"] += len(rollouts)
        counts.update({1: "right", 0: "not_right", None: "ungraded"}[rollout.label] for rollout in rollouts)
        counts["unparsable"] += sum(rollout.answer is None and rollout.label is not None for rollout in rollouts)
        counts["cut_at_length"] += sum(rollout.finish_reason == "length" for rollout in rollouts)
    return counts


def listing(data: Mapping[str, Any]) -> str:
    """Return figures by name, a line each."""
    return "\n".join(f"{key.replace('_', ' '):24} {value}" for key, value in data.items())


def watched() -> bool:
    """Tell whether somebody is watching."""
    return sys.stderr.isatty()
