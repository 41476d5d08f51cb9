"""Which rows of a step belong together: prompts come repeated, once for each rollout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from swift_rm.hipo.response.template import Mode


@dataclass(frozen=True)
class PromptGroup:
    """Consecutive rows of one question that are sampled alike: ``count`` from row ``start``, in a forced mode or None."""

    start: int
    count: int
    mode: Mode | None


def find_runs(prompts: Sequence[Any], first: int, group: int, forced: bool = False) -> list[PromptGroup]:
    """Return the runs of equal prompts, in order; each is within one group of ``group`` rollouts.

    ``first`` is the number of the first row among those of all processes: a group may begin on another one. Two groups of
    equal prompts are two runs. If ``forced``, the first half of a group (the larger one) is to think, the second is not.
    """
    starts: list[int] = []
    kinds: list[tuple[int, Mode | None]] = []
    for row, prompt in enumerate(prompts):
        number, place = divmod(first + row, group)
        mode: Mode | None = None if not forced else "on" if 2 * place < group else "off"
        if not starts or (number, mode) != kinds[-1] or prompt != prompts[row - 1]:
            starts.append(row)
            kinds.append((number, mode))
    ends = [*starts[1:], len(prompts)]
    return [PromptGroup(start, end - start, mode) for start, end, (_, mode) in zip(starts, ends, kinds, strict=True)]
