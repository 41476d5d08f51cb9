"""From reward to probability: a curve fitted on held-out questions and stored with the model as plain numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Method = Literal["temperature", "platt", "isotonic"]
METHODS = ("temperature", "platt", "isotonic")


@dataclass(frozen=True)
class Calibration:
    """A monotone map from reward to probability: ``sigmoid(slope * reward + offset)``, or a step-wise linear curve."""

    method: Method
    slope: float = 1.0
    offset: float = 0.0
    rewards: tuple[float, ...] = ()
    probabilities: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"calibration method must be one of {METHODS}, got {self.method!r}")
        if len(self.rewards) != len(self.probabilities) or (self.method == "isotonic" and not self.rewards):
            raise ValueError(
                f"an isotonic curve needs as many rewards ({len(self.rewards)}) as probabilities ({len(self.probabilities)})"
            )

    def __call__(self, rewards: ArrayLike) -> NDArray[np.float64]:
        """Return the probabilities of being right; NaN stays NaN."""
        values = np.asarray(rewards, dtype=np.float64)
        if self.method == "isotonic":
            curve = np.interp(values, self.rewards, self.probabilities)
            return np.where(np.isnan(values), np.nan, curve)
        logits = np.clip(self.slope * values + self.offset, -700, 700)
        return np.asarray(1 / (1 + np.exp(-logits)))

    def to_dict(self) -> dict[str, Any]:
        """Return the curve as JSON-ready values."""
        return {**asdict(self), "rewards": list(self.rewards), "probabilities": list(self.probabilities)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Build a curve from JSON values."""
        return cls(**{**values, "rewards": tuple(values["rewards"]), "probabilities": tuple(values["probabilities"])})


def fit_calibration(rewards: Sequence[float], labels: Sequence[int], method: Method = "platt") -> Calibration:
    """Fit a calibration on held-out rewards and labels (1 right, 0 not) with scikit-learn.

    ``platt`` fits slope and offset, ``temperature`` the slope alone, ``isotonic`` a monotone curve (wants hundreds of
    responses). The slope is never negative: where the rewards do not rank, it is 0. Raises ValueError if the labels are
    all equal.
    """
    if method not in METHODS:
        raise ValueError(f"calibration method must be one of {METHODS}, got {method!r}")
    if len(set(labels)) < 2:
        raise ValueError(f"calibration needs right and wrong responses, got {len(labels)} labels all equal to {set(labels)}")
    x, y = np.asarray(rewards, dtype=np.float64), np.asarray(labels)
    if method == "isotonic":
        from sklearn.isotonic import IsotonicRegression

        curve = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(x, y)
        return Calibration("isotonic", rewards=tuple(curve.X_thresholds_), probabilities=tuple(curve.y_thresholds_))
    from sklearn.linear_model import LogisticRegression

    scale = float(x.std()) or 1.0
    model = LogisticRegression(C=1e6, fit_intercept=method == "platt").fit(x[:, None] / scale, y)
    slope = float(model.coef_[0, 0]) / scale
    offset = float(model.intercept_[0]) if method == "platt" else 0.0
    if slope <= 0:
        rate = float(np.clip(y.mean(), 1e-6, 1 - 1e-6))
        slope, offset = 0.0, float(np.log(rate / (1 - rate))) if method == "platt" else 0.0
    return Calibration(method, slope=slope, offset=offset)
