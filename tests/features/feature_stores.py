"""Feature stores for tests: graded rollouts with states that follow from their names, so that any run can make them again."""

from __future__ import annotations

import hashlib
import os

import torch

from swift_rm.features.key import FeatureKey
from swift_rm.features.writer import FeatureWriter
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


def make_store(folder, questions=12, shard_bytes=1000, settings=None, **changes):
    with FeatureWriter(folder, make_key(**changes), shard_bytes=shard_bytes) as writer:
        fill(writer, range(questions), **(settings or {}))
    return folder


def read_all(store):
    """Question, label and dequantised states of every graded response, in the store's order."""
    found = []
    for features in store:
        for b in range(len(features.labels)):
            states, offsets = features.take(torch.tensor([b]))
            assert offsets.tolist() == [0, len(states)]
            found.append((store.question_ids[features.question[b]], int(features.labels[b]), states))
    return found


def damage(kind, path):
    if kind == "missing":
        path.unlink()
    elif kind == "cut":
        os.truncate(path, path.stat().st_size - 7)
    else:
        with open(path, "r+b") as file:
            file.seek({"states": path.stat().st_size - 5, "head": 40}[kind])
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 1]))
