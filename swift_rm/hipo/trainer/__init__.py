"""Reinforcement by TRL's trainer: configuration, resuming, and what is logged of each step.

`HiPOTrainer` and `HiPOConfig` can be imported from here; TRL is imported with them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swift_rm.hipo.trainer.hipo_trainer import HiPOTrainer
    from swift_rm.hipo.trainer.trainer_config import HiPOConfig

_HOMES = {"HiPOConfig": "trainer_config", "HiPOTrainer": "hipo_trainer"}
__all__ = ["HiPOConfig", "HiPOTrainer"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'swift_rm.hipo.trainer' has no attribute {name!r}")
