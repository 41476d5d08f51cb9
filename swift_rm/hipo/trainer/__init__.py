"""Reinforcement by TRL's trainer: configuration, resuming, and what is logged of each step.

`HiPOTrainer` and `HiPOConfig` can be imported from here; TRL is imported with them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swift_rm.files.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from swift_rm.hipo.trainer.hipo_trainer import HiPOTrainer
    from swift_rm.hipo.trainer.trainer_config import HiPOConfig

_HOMES = {"HiPOConfig": "trainer_config", "HiPOTrainer": "hipo_trainer"}
__all__ = ["HiPOConfig", "HiPOTrainer"]

__getattr__ = lazy_exports(__name__, _HOMES)
