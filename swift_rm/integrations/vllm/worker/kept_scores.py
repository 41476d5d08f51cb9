"""The heads' numbers for each state of each request, kept in the worker until they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from swift_rm.integrations.vllm.versions.version import vllm_name

STEPS_WAITING = 64  # steps whose scores stay where they were computed, so that no step waits for a copy
MOST_FINISHED = 4_096  # requests that ended and that nobody asked for: the oldest are forgotten beyond that


class KeptScores:
    """Keep ``width`` floats a state, by request and place (0 is the prompt's last state).

    What comes twice, after preemption, is written twice; a place of which nothing came is NaN, and a fault of the request.
    """

    def __init__(
        self, width: int, most_finished: int = MOST_FINISHED, named: Callable[[Sequence[str]], Sequence[str]] = tuple
    ) -> None:
        self.width, self.most_finished, self._named = width, most_finished, named
        self._scores: dict[str, np.ndarray] = {}  # [room, width + 1], of which the last is a number where something came
        self._lengths: dict[str, int] = {}
        self._finished: dict[str, None] = {}  # in the order in which they ended, with some that were taken before
        self._faults: dict[str, str] = {}
        self._waiting: list[tuple[list[str], np.ndarray, np.ndarray, Tensor]] = []

    def __len__(self) -> int:
        return len(self._scores)

    def add(self, requests: list[str], owner: np.ndarray, place: np.ndarray, scores: Tensor) -> None:
        """Take the scores ``[n, width]`` of a step: of the request ``requests[owner[i]]`` that at ``place[i]``.

        ``named`` makes of the step's requests the names by which they are asked for.
        """
        self._waiting.append((requests, owner, place, scores))
        if len(self._waiting) >= STEPS_WAITING:
            self._settle()

    def finish(self, requests: Iterable[str]) -> None:
        """Hear that requests have ended: they are kept until they are taken, or until too many have ended after them.

        Those of which nothing is kept any more do not count. It is looked at once in an eighth of the limit, not in every step.
        """
        self._finished.update(dict.fromkeys(requests))
        if len(self._finished) > self.most_finished + self.most_finished // 8:
            self._settle()
            left = [request for request in self._finished if request in self._scores or request in self._faults]
            self._finished = dict.fromkeys(left)
            self.forget(left[: max(0, len(left) - self.most_finished)])

    def spoil(self, request: str, why: str) -> None:
        """Say that the scores of a request, by the name by which it is asked for, are not those of its tokens, and why."""
        self._faults.setdefault(request, why)

    def read(self, requests: Sequence[str]) -> list[np.ndarray]:
        """Return the scores ``[places, width]`` of each request, up to the last place of which there are any."""
        self._settle()
        return [self._kept(request)[:, : self.width] for request in requests]

    def faults(self, requests: Sequence[str]) -> list[str | None]:
        """Return for each request why its scores are not those of its tokens, or None if they are."""
        self._settle()
        return [self._faults.get(request) or _gap(self._kept(request)[:, self.width]) for request in requests]

    def forget(self, requests: Iterable[str]) -> None:
        """Drop what is kept of these requests."""
        self._settle()
        for request in requests:
            for kept in (self._scores, self._lengths, self._finished, self._faults):
                kept.pop(request, None)

    def _kept(self, request: str) -> np.ndarray:
        room = self._scores.get(request)
        return np.zeros((0, self.width + 1), np.float32) if room is None else room[: self._lengths[request]]

    def _settle(self) -> None:
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        values = torch.cat([scores for *_, scores in waiting]).float().cpu().numpy()
        places = np.concatenate([place for _, _, place, _ in waiting])
        numbers: dict[str, int] = {}
        owners = []
        for requests, owner, _, _ in waiting:
            step = np.array([numbers.setdefault(name, len(numbers)) for name in self._named(requests)])
            owners.append(step[owner])
        each = np.concatenate(owners)
        order = np.argsort(each, kind="stable")  # one write a request: what came later is written later
        bounds = np.searchsorted(each[order], np.arange(len(numbers) + 1)).tolist()
        for name, begin, end in zip(numbers, bounds, bounds[1:], strict=False):
            if end > begin:
                rows = order[begin:end]
                self._write(name, places[rows], values[rows])

    def _write(self, request: str, place: np.ndarray, scores: np.ndarray) -> None:
        room, needed = self._scores.get(request), int(place.max()) + 1
        if room is None or len(room) < needed:
            before = 0 if room is None else len(room)
            grown = np.full((max(needed, 64, 2 * before), self.width + 1), np.nan, np.float32)
            if room is not None:
                grown[:before] = room
            self._scores[request] = room = grown
        room[place, : self.width], room[place, self.width] = scores, 1
        self._lengths[request] = max(self._lengths.get(request, 0), needed)


def _gap(came: np.ndarray) -> str | None:
    missing = np.flatnonzero(np.isnan(came))
    if not len(missing):
        return None
    return f"{vllm_name()} computed no state at {len(missing)} of a sample's {len(came)} places, the first of them {missing[0]}"
