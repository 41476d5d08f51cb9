"""Hidden-state reward models: pick the best of N answers from what the language model already knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swift_rm._version import __version__
from swift_rm.files.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from swift_rm.api.best_of_n import ApiBestOfN
    from swift_rm.capture.streaming import StreamingReward
    from swift_rm.capture.tap import HiddenStateTap
    from swift_rm.decoding.best_of_n import best_of_n
    from swift_rm.decoding.custom_generate import BestOfNDecoding
    from swift_rm.evaluation.evaluate import evaluate
    from swift_rm.reward.config import SwiftConfig
    from swift_rm.reward.reward_model import SwiftRewardModel
    from swift_rm.sampling.sample import sample
    from swift_rm.scoring.score import score
    from swift_rm.training.fit import fit
    from swift_rm.training.fit_while_sampling import fit_online
    from swift_rm.training.head_grid import plan_grid

_HOMES = {
    "ApiBestOfN": "api.best_of_n",
    "BestOfNDecoding": "decoding.custom_generate",
    "HiddenStateTap": "capture.tap",
    "StreamingReward": "capture.streaming",
    "SwiftConfig": "reward.config",
    "SwiftRewardModel": "reward.reward_model",
    "best_of_n": "decoding.best_of_n",
    "evaluate": "evaluation.evaluate",
    "fit": "training.fit",
    "fit_online": "training.fit_while_sampling",
    "plan_grid": "training.head_grid",
    "sample": "sampling.sample",
    "score": "scoring.score",
}
__all__ = [
    "ApiBestOfN",
    "BestOfNDecoding",
    "HiddenStateTap",
    "StreamingReward",
    "SwiftConfig",
    "SwiftRewardModel",
    "__version__",
    "best_of_n",
    "evaluate",
    "fit",
    "fit_online",
    "plan_grid",
    "sample",
    "score",
]

__getattr__ = lazy_exports("swift_rm", _HOMES)
