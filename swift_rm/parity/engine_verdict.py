"""Why an engine is said to equal transformers, or not to, in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from swift_rm.parity.recorded_run import EngineRun

if TYPE_CHECKING:
    from swift_rm.parity.engine_check import LayerRow, RewardRow


def why(run: EngineRun, layers: Sequence[LayerRow], rewards: RewardRow) -> str:
    """Return the sentence for a run, whose ``layers`` and ``rewards`` compare like this."""
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


def _what_differs(run: EngineRun, layers: Sequence[LayerRow], wrong: Sequence[LayerRow]) -> str:
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


def _worst(rows: Sequence[LayerRow]) -> LayerRow:
    return max(rows, key=lambda row: row.relative if row.transformers_error is None else row.error)
