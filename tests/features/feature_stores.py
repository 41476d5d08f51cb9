"""Feature stores for tests: graded rollouts with states that follow from their names, so that any run can make them again."""

from __future__ import annotations

import hashlib

import torch

from swift_rm.features.key import FeatureKey
from swift_rm.records.rollouts import Rollout

HIDDEN = 8


def make_key(**changes):
    values = {
        "base_model": "org/model", "base_revision": "abc", "fingerprint": "f" * 16, "hidden_size": HIDDEN, "base_layers": 4,
        "layers": (1, 3), "positions": ("generating",), "dtype": "float32", "stride": 1, "n": 3, **changes,
    }  # fmt: skip
    return FeatureKey(**values)


def make_rollouts(question, n=3, tokens=(2, 5, 7), labels=(1, 0, None)):
    return [
        Rollout(
            f"question-{question}", "p", [1, 2], "r", [(question + i + t) % 50 for t in range(tokens[i % len(tokens)])], "stop",
            label=labels[(question + i) % len(labels)], extra={"sample": i},
        )
        for i in range(n)
    ]  # fmt: skip


def state_of(rollout, row, width):
    name = f"{rollout.question_id}/{rollout.extra['sample']}/{row}"
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "little")
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))


def states_of(rollouts, key):
    """All recorded rows, packed, with offsets."""
    rows = [[state_of(rollout, row, key.width) for row in key.recording.rows(len(rollout.response_ids))] for rollout in rollouts]
    offsets = torch.tensor([0, *map(len, rows)]).cumsum(0)
    return torch.stack([row for part in rows for row in part]), offsets


def fill(writer, questions, **settings):
    """What a run does: add everything that is not held yet, question by question; return how many it added."""
    added = 0
    for question in questions:
        rollouts = make_rollouts(question, **settings)
        if not writer.holds(rollouts):
            writer.add(rollouts, *states_of(rollouts, writer.key))
            added += 1
    return added
