"""The rivals that the 2D + 2 head is compared with, as one list."""

from __future__ import annotations

from benchmarks.heads.rival_data import Rival, RivalData, within
from benchmarks.heads.rival_encoder import EncoderSettings, StepEncoder
from benchmarks.heads.rival_linear import CentroidRule, LastTokenLogistic

__all__ = [
    "CentroidRule", "EncoderSettings", "LastTokenLogistic", "Rival", "RivalData", "StepEncoder",
    "rivals", "within",
]  # fmt: skip


def rivals(hidden_size: int) -> list[Rival]:
    """Return every rival, unfitted: each on all layers, and the two that may overfit on the last layer as well."""
    return [
        StepEncoder("step encoder"),
        StepEncoder("step encoder, last layer", width=hidden_size),
        LastTokenLogistic("last token logistic"),
        LastTokenLogistic("last token logistic, last layer", width=hidden_size),
        CentroidRule(hidden_size, "centroid rule"),
        CentroidRule(hidden_size, "centroid rule, chosen", choose=True),
    ]
