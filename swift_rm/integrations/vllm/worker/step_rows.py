"""Which request, and which of its tokens, each row of a vLLM step belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class StepRows:
    """The requests of a step, in the order of its rows.

    Request i has the rows ``starts[i]`` to ``starts[i + 1]``, of which the first is at position ``first[i]`` of the whole
    sequence; its prompt is ``prompt[i]`` tokens long. A prompt's cached part and what was computed before have no rows;
    after preemption rows come again, with equal values.
    """

    requests: list[str]
    starts: np.ndarray  # [R + 1]
    first: np.ndarray  # [R]
    prompt: np.ndarray  # [R]

    def produced(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the rows from the prompt's last on, their requests (by number here), and their places, ``[n]`` each.

        The row at place k is the state that produced response token k (counted from 0), and the state at token k - 1.
        """
        counts = np.diff(self.starts)
        if self.starts[-1] == len(counts) and (self.first >= self.prompt).all():  # a token of each, as in most steps
            each = np.arange(len(counts))
            return each, each, self.first - self.prompt + 1
        owner = np.repeat(np.arange(len(counts)), counts)
        place = np.arange(self.starts[-1]) - self.starts[owner] + self.first[owner] - self.prompt[owner] + 1
        rows = np.flatnonzero(place >= 0)
        return rows, owner[rows], place[rows]

    def sampled(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the requests (by number here) of which the step's last row produces a token, and that row's place."""
        place = self.first + np.diff(self.starts) - self.prompt
        owner = np.flatnonzero(place >= 0)
        return owner, place[owner]


def rows_of(runner: Any) -> StepRows:
    """Read the rows of the step that a V1 model runner has prepared or just run."""
    batch = runner.input_batch
    count = batch.num_reqs
    return StepRows(
        list(batch.req_ids[:count]),
        runner.query_start_loc.np[: count + 1].astype(np.int64),
        batch.num_computed_tokens_cpu[:count].astype(np.int64),
        batch.num_prompt_tokens[:count].astype(np.int64),
    )


def rows_of_v2(runner: Any, batch: Any) -> StepRows:
    """Read the rows of the step that a V2 model runner has just run on ``batch``."""
    return StepRows(
        list(batch.req_ids[: batch.num_reqs]),
        np.asarray(batch.query_start_loc_np[: batch.num_reqs + 1], dtype=np.int64),
        np.asarray(batch.num_computed_tokens_np[: batch.num_reqs], dtype=np.int64),
        np.asarray(runner.req_states.prompt_len.np[batch.idx_mapping_np[: batch.num_reqs]], dtype=np.int64),
    )


def pick(states: Sequence[Tensor], rows: np.ndarray, total: int) -> list[Tensor]:
    """Return these rows of each ``[rows, d]``: a view where they are the first ``total``, all there are."""
    if len(rows) == total:
        return [layer[:total] for layer in states]
    index = torch.from_numpy(rows).to(states[0].device, non_blocking=True)
    return [layer.index_select(0, index) for layer in states]
