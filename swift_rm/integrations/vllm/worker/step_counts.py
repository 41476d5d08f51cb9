"""Count the rows of each step: those that vLLM's scheduler asked for, each request going on where its last rows ended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from swift_rm.capture.step_order import OutOfStep
from swift_rm.integrations.vllm.versions.version import vllm_name
from swift_rm.integrations.vllm.worker.step_rows import StepRows


class StepCounts:
    """Count the rows of each step, by request, and compare them with the scheduler's output and with the steps before.

    A step that contradicts its own scheduler's output is an error. A request that goes on elsewhere than where it ended, without
    having been preempted, is named with a reason, for which it is to have no reward.
    """

    def __init__(self) -> None:
        self._ends: dict[str, int] = {}  # the position after a request's last row; of the last step's requests it is in:
        self._requests: list[str] = []
        self._last = np.zeros(0, np.int64)

    def check(self, scheduled: Any, rows: StepRows, states: Sequence[Tensor]) -> dict[str, str]:
        """Return the requests that are out of step, each with a reason; raise OutOfStep if the whole step is.

        ``scheduled`` is vLLM's SchedulerOutput, and ``states`` are the layers' states, ``[rows, d]`` each, rows maybe padded.
        """
        counts = np.diff(rows.starts)
        self._check_rows(scheduled, rows, counts, states)
        ends = rows.first + counts
        if rows.requests == self._requests and not scheduled.scheduled_new_reqs and np.array_equal(rows.first, self._last):
            self._last = ends  # as in most steps: the same requests, a token each
            return {}
        self._ends.update(zip(self._requests, self._last.tolist(), strict=True))
        begun = {new.req_id for new in scheduled.scheduled_new_reqs} | set(scheduled.scheduled_cached_reqs.resumed_req_ids)
        wrong: dict[str, str] = {}
        for name, first, prompt in zip(rows.requests, rows.first.tolist(), rows.prompt.tolist(), strict=True):
            end = self._ends.get(name, 0)
            if first > max(end, prompt - 1):
                wrong[name] = _said(
                    f"skipped the states of {first - max(end, prompt - 1)} tokens of a request, from {end} to {first}"
                )
            elif first < end and name not in begun:
                wrong[name] = _said(f"computed tokens {first} to {end} of a request again, which it had not preempted")
        self._requests, self._last = rows.requests, ends
        return wrong

    def forget(self, requests: Iterable[str]) -> None:
        """Drop what is known of requests that have ended."""
        gone = set(requests)
        if not gone:
            return
        kept = [i for i, name in enumerate(self._requests) if name not in gone]
        self._requests, self._last = [self._requests[i] for i in kept], self._last[kept]
        for name in gone:
            self._ends.pop(name, None)

    def _check_rows(self, scheduled: Any, rows: StepRows, counts: np.ndarray, states: Sequence[Tensor]) -> None:
        if scheduled.scheduled_spec_decode_tokens:
            some = len(scheduled.scheduled_spec_decode_tokens)
            raise OutOfStep(_said(f"scheduled drafted tokens of {some} requests, which are not always kept"))
        asked, computed = scheduled.num_scheduled_tokens, dict(zip(rows.requests, counts.tolist(), strict=True))
        if computed != asked or len(computed) < len(rows.requests):
            name = next((one for one in [*asked, *computed] if asked.get(one) != computed.get(one)), rows.requests[0])
            raise OutOfStep(
                _said(f"scheduled {asked.get(name, 0)} tokens of request {name} and has rows of {computed.get(name, 0)}")
                + f" ({len(asked)} requests scheduled, {len(rows.requests)} in the batch)"
            )
        total = int(rows.starts[-1])
        if rows.starts[0] != 0 or total != scheduled.total_num_scheduled_tokens:
            raise OutOfStep(
                _said(f"scheduled {scheduled.total_num_scheduled_tokens} tokens and has rows {rows.starts[0]} to {total}")
            )
        found = sorted({len(layer) for layer in states})
        if found and (len(found) > 1 or found[0] < total):
            raise OutOfStep(_said(f"scheduled {total} tokens and returned states of {' and '.join(map(str, found))}"))


def _said(what: str) -> str:
    return f"{vllm_name()} {what}"
