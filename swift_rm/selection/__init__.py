"""Pure rules over one question's candidates, and the baseline scores. The rules can be imported from here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swift_rm.files.lazy_exports import lazy_exports
from swift_rm.selection.rule_table import DEFAULT_RULE, EXTERNAL_RULES, RULES

if TYPE_CHECKING:
    from swift_rm.selection.rules import (
        BORDA_POWER,
        SHRINKAGE,
        Answers,
        Scores,
        Selection,
        best,
        borda_vote,
        borda_votes,
        check_rule,
        fuse_rank,
        fuse_scale,
        majority_vote,
        reward_vote,
        reward_weights,
        select,
        shrunk_means,
        shrunk_vote,
        weighted_vote,
    )

__all__ = [
    "BORDA_POWER",
    "DEFAULT_RULE",
    "EXTERNAL_RULES",
    "RULES",
    "SHRINKAGE",
    "Answers",
    "Scores",
    "Selection",
    "best",
    "borda_vote",
    "borda_votes",
    "check_rule",
    "fuse_rank",
    "fuse_scale",
    "majority_vote",
    "reward_vote",
    "reward_weights",
    "select",
    "shrunk_means",
    "shrunk_vote",
    "weighted_vote",
]

__getattr__ = lazy_exports(__name__, dict.fromkeys(__all__, "rules"))
