"""Hidden-state reward models: pick the best of N answers from what the language model already knows."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from swift_rm._version import __version__

if TYPE_CHECKING:
    from swift_rm.api.best_of_n import ApiBestOfN
    from swift_rm.best_of_n import best_of_n
    from swift_rm.config import SwiftConfig
    from swift_rm.custom_generate import BestOfNDecoding
    from swift_rm.evaluation import evaluate
    from swift_rm.fit import fit
    from swift_rm.online import fit_online
    from swift_rm.plans import plan_grid
    from swift_rm.reward_model import SwiftRewardModel
    from swift_rm.sampling import sample
    from swift_rm.scoring import score
    from swift_rm.streaming import StreamingReward
    from swift_rm.tap import HiddenStateTap

_HOMES = {
    "ApiBestOfN": "api.best_of_n", "BestOfNDecoding": "custom_generate", "HiddenStateTap": "tap",
    "StreamingReward": "streaming", "SwiftConfig": "config", "SwiftRewardModel": "reward_model", "best_of_n": "best_of_n",
    "evaluate": "evaluation", "fit": "fit", "fit_online": "online", "plan_grid": "plans", "sample": "sampling",
    "score": "scoring",
}  # fmt: skip
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


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"swift_rm.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'swift_rm' has no attribute {name!r}")


class _Package(ModuleType):
    """Keep the functions ``fit`` and ``best_of_n`` where importing the files of these names would put the modules."""

    def __setattr__(self, name: str, value: Any) -> None:
        named_like_its_file = name in _HOMES and isinstance(value, ModuleType)
        super().__setattr__(name, getattr(value, name) if named_like_its_file else value)


sys.modules[__name__].__class__ = _Package
