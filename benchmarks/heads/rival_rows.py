"""Which rivals the table of heads has, and the rows that they read: they need the ends, the steps' ends and the answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch

from benchmarks.heads.head_variants import ANSWER, RESULTS, STEPS, VIEWS
from benchmarks.heads.rivals import CentroidRule, EncoderSettings, LastTokenLogistic, Rival, RivalData, StepEncoder
from swift_rm.features.read_states import Features

Boundary = Literal["steps", "results", "answer"]


def compared(hidden_size: int, settings: EncoderSettings) -> list[tuple[Rival, Boundary]]:
    """Return the rivals, unfitted, and what an encoder takes for the steps' ends: those, what comes before, or the answer."""
    return [
        (StepEncoder("step encoder", settings=settings), "steps"),
        (StepEncoder("step encoder, last layer", width=hidden_size, settings=settings), "steps"),
        (StepEncoder("step encoder, steps' results", settings=settings), "results"),
        (StepEncoder("step encoder, answer only", settings=settings), "answer"),
        (LastTokenLogistic("last token logistic"), "steps"),
        (LastTokenLogistic("last token logistic, last layer", width=hidden_size), "steps"),
        (CentroidRule(hidden_size, "centroid rule"), "steps"),
        (CentroidRule(hidden_size, "centroid rule, chosen", choose=True), "steps"),
    ]


def rival_rows(features: Features) -> dict[Boundary, RivalData]:
    """Return features of ``VIEWS`` as rivals read them: states at a response's first token, its last, and the marked ones.

    The state before the first token, which only the position "generating" reads, is left out.
    """
    masks = features.masks
    if masks is None or features.views != VIEWS:
        raise ValueError(f"rivals read features of the views {VIEWS}, got {features.views}")
    whole = masks[:, 0]
    owner = torch.repeat_interleave(features.offsets.diff())
    rows = whole.nonzero().flatten()
    ends = torch.zeros_like(whole)
    new = owner[rows].diff() != 0
    ends[rows[torch.cat([new.new_ones(1), new])]] = ends[rows[torch.cat([new, new.new_ones(1)])]] = True
    steps, results, answer = (masks[:, VIEWS.index(view)] for view in (STEPS, RESULTS, ANSWER))
    kept = ends | steps | (results & whole) | answer
    sizes = torch.bincount(owner[kept], minlength=len(features.labels))
    offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    packed = Features(features.states[kept], offsets, features.labels, features.question)
    data = RivalData.of(packed, steps[kept])
    of_results = RivalData.of(packed, (results & whole)[kept])
    return {"steps": data, "results": of_results, "answer": replace(data, boundary=answer[kept])}
