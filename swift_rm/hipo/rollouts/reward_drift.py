"""Is the reward model still right about the policy it trains? A trickle of labelled questions tells."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from swift_rm.evaluation.auroc import within_question_auroc


@dataclass(frozen=True)
class Trickle:
    """Pick the questions whose rollouts are labelled: a ``share`` of them, by hash, the same ones in every run and process."""

    share: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"the labelled share must be from 0 to 1, got {self.share}")

    def picks(self, question: Any) -> bool:
        """Tell whether a question, given by its id or its prompt (text or messages), is one of them."""
        name = question if isinstance(question, str) else json.dumps(question, sort_keys=True, default=str)
        digest = hashlib.sha256(f"{self.seed}\n{name}".encode(errors="surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") < self.share * 2**64


class LabelledReward(Protocol):
    """What is asked of a rollout: its question, the reward model's probability and the label, None or NaN if there is none."""

    @property
    def question_id(self) -> str:
        """Return the question that it answers."""

    @property
    def probability(self) -> float | None:
        """Return what the reward model said."""

    @property
    def accuracy(self) -> float | None:
        """Return the label: 1 right, 0 not."""

    @property
    def labelled(self) -> bool:
        """Tell whether the label may be looked at."""


def drift(rows: Iterable[LabelledReward]) -> dict[str, float]:
    """Compare the reward model with the labels of the rollouts that are ``labelled``.

    "hipo/drift_auroc" is the mean over questions of the chance that a right response is judged above a wrong one, and falls
    to 0.5 as the model goes stale. "hipo/hacking_gap" is mean probability less mean accuracy: where the policy learns to
    please the reward model instead of being right, it grows. "hipo/drift_rows" counts the rollouts. A figure that these
    cannot tell is left out.
    """
    by_question: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        p, label = row.probability, row.accuracy
        if row.labelled and p is not None and label is not None and p == p and label == label:
            by_question.setdefault(row.question_id, []).append((p, label))
    if not by_question:
        return {}
    pairs = [np.array(group, dtype=np.float64) for group in by_question.values()]
    every = np.concatenate(pairs)
    figures = {
        "hipo/hacking_gap": float(every[:, 0].mean() - every[:, 1].mean()),
        "hipo/drift_rows": float(len(every)),
    }
    auroc = within_question_auroc([one[:, 0] for one in pairs], [(one[:, 1] > 0.5).astype(np.float64) for one in pairs])
    if not np.isnan(auroc).all():
        figures["hipo/drift_auroc"] = float(np.nanmean(auroc))
    return figures


class DriftWindow:
    """The same of the last ``rows`` labelled rollouts: one step has too few of a trickle to tell anything."""

    def __init__(self, rows: int = 512) -> None:
        if rows < 1:
            raise ValueError(f"the window needs at least 1 rollout, got {rows}")
        self._rows: deque[LabelledReward] = deque(maxlen=rows)

    def add(self, rows: Sequence[LabelledReward]) -> dict[str, float]:
        """Take a step's rollouts, and return the :func:`drift` of what the window holds."""
        self._rows.extend(row for row in rows if row.labelled)
        return drift(self._rows)
