"""How a head is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from swift_rm.reward.calibration import Method
from swift_rm.training.input_standardisation import STANDARDISE, Standardise
from swift_rm.training.losses import POINTWISE, get_loss

Balance = Literal["response", "question"]
BALANCES = ("response", "question")


@dataclass(frozen=True)
class FitSettings:
    """How a head is trained: ``batch_size`` counts questions, ``patience`` epochs, ``validation`` is a share of questions.

    ``standardise`` divides by each ``"feature"``'s deviation, by one per ``"layer"``, or not (``"none"``).
    ``balance="question"`` lets every question with right and wrong responses weigh the same, and in it both sides the same.
    ``centre`` takes the mean of each question's tokens from its states, so that what a question is cannot be learnt.
    ``ensemble`` heads are trained at once, each on four fifths of the questions, and become one reward model, whose reward
    is their mean less ``pessimism`` times their standard deviation.
    ``prefixes`` is the share of the loss that is taken over every beginning of a response instead of the whole: with 1, the
    reward is at each token the logit of ending right, and may guide pruning (needs the loss ``bce`` or ``hinge``).
    """

    loss: str = "bce"
    lr: float = 0.01
    weight_decay: float = 1e-5
    epochs: int = 40
    patience: int = 6
    batch_size: int = 16
    validation: float = 0.2
    calibration: Method = "platt"
    seed: int = 0
    prefixes: float = 0.0
    standardise: Standardise = "feature"
    balance: Balance = "response"
    centre: bool = False
    ensemble: int = 1
    pessimism: float = 0.0

    def __post_init__(self) -> None:
        get_loss(self.loss)
        if not 0 <= self.prefixes <= 1:
            raise ValueError(f"prefixes must be a share of the loss from 0 to 1, got {self.prefixes}")
        if self.prefixes and self.loss not in POINTWISE:
            raise ValueError(f"prefixes need a loss of single responses, one of {sorted(POINTWISE)}, got {self.loss!r}")
        if not 0 < self.validation < 1:
            raise ValueError(f"validation must be a share of questions between 0 and 1, got {self.validation}")
        for name, choices in (("standardise", STANDARDISE), ("balance", BALANCES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}, got {getattr(self, name)!r}")
        for name in ("lr", "epochs", "patience", "batch_size", "ensemble"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not (self.pessimism >= 0 and math.isfinite(self.pessimism)):
            raise ValueError(f"pessimism must be 0 or more, got {self.pessimism}")
        if self.pessimism and self.ensemble == 1:
            raise ValueError(f"pessimism={self.pessimism} needs an ensemble: one head has no spread")
