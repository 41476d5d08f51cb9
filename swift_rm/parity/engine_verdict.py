"""The result of comparing an engine with transformers, layer by layer and by reward, and the sentence that explains it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from swift_rm.parity.recorded_run import EngineRun


@dataclass(frozen=True)
class LayerComparison:
    """How the states of a layer, counted from 0, or the ``"logits"`` compare.

    ``max_difference`` is the largest of one number, of engine and transformers in the same dtype. All else is a fraction of
    the layer's size, the root mean square of its states: ``relative`` is that difference, ``error`` the root mean square of the
    engine's distance from transformers in float32, ``transformers_error`` that of transformers in the engine's dtype (None in
    float32). ``resembles`` names the states that a layer that differs has instead of its own, if they were found.
    """

    layer: int | str
    max_difference: float
    relative: float
    error: float
    transformers_error: float | None
    equal: bool
    resembles: str | None = None


@dataclass(frozen=True)
class RewardComparison:
    """How rewards compare: the largest difference in the same dtype, and the errors against float32, root mean squares."""

    max_difference: float
    error: float
    transformers_error: float | None
    equal: bool


@dataclass(frozen=True)
class EngineCheck:
    """How an engine compares with transformers, by layer and by reward; the sentence ``why`` explains the ``verdict``."""

    engine: str
    engine_version: str
    model: str
    reward_model: str
    dtype: str
    responses: int
    tokens: int
    layers: tuple[LayerComparison, ...]
    rewards: RewardComparison
    why: str

    @property
    def equal(self) -> bool:
        """Whether every layer and the rewards are."""
        return self.rewards.equal and all(row.equal for row in self.layers)

    @property
    def verdict(self) -> str:
        """``"equal"`` or ``"different"``."""
        return "equal" if self.equal else "different"

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        data = asdict(self)
        rewards, why = data.pop("rewards"), data.pop("why")
        worst = {"worst_reward_difference": rewards["max_difference"], "rewards": rewards}
        return {**data, **worst, "verdict": self.verdict, "why": why}


def explain_verdict(run: EngineRun, layers: Sequence[LayerComparison], rewards: RewardComparison) -> str:
    """Return the sentence that says why an engine equals transformers, or where its run differs most."""
    wrong = [row for row in layers if not row.equal]
    if wrong:
        return _what_differs(run, layers, wrong)
    if not rewards.equal:
        return f"the states are equal, but rewards differ by up to {rewards.max_difference:.3g}"
    worst = _worst(layers)
    where = "the logits' size" if worst.layer == "logits" else f"the size of layer {worst.layer}, the worst"
    if worst.transformers_error is None:
        return f"they differ by at most {worst.relative:.1e} of {where}, and rewards by at most {rewards.max_difference:.1e}"
    return (
        f"measured by float32, {run.engine} errs by {worst.error:.1e} and transformers in {run.dtype} by "
        f"{worst.transformers_error:.1e} of {where}, in rewards by {rewards.error:.1e} and {rewards.transformers_error:.1e}"
    )


def _what_differs(run: EngineRun, layers: Sequence[LayerComparison], wrong: Sequence[LayerComparison]) -> str:
    worst = _worst(wrong)
    size = f"{worst.relative if worst.transformers_error is None else worst.error:.2g} of its size"
    if worst.layer == "logits":
        said = [f"the output logits differ by {size}"]
    elif len(wrong) == 1:
        said = [f"layer {worst.layer} of the {len(layers)} read differs by {size}"]
    else:
        named = ", ".join(str(row.layer) for row in wrong)
        said = [f"layers {named} of the {len(layers)} read differ, layer {worst.layer} most, by {size}"]
    if worst.transformers_error is not None:
        said.append(f"transformers in {run.dtype} errs by {worst.transformers_error:.2g}")
    said += [f"{run.engine}'s layer {row.layer} is transformers' {row.resembles}" for row in wrong if row.resembles]
    lost = sum(int((~torch.from_numpy(one.states).isfinite()).any(dim=1).sum()) for one in run.responses)
    if lost:
        said.append(f"{run.engine} has no finite states at {lost} of {run.tokens} tokens")
    return "; ".join(said)


def _worst(rows: Sequence[LayerComparison]) -> LayerComparison:
    return max(rows, key=lambda row: row.relative if row.transformers_error is None else row.error)
