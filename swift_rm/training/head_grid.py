"""What the heads of a bank are: plans, made one by one or as a grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from typing import Any

from swift_rm.features.row_selection import Reading, reading_of
from swift_rm.reward.config import SwiftConfig
from swift_rm.training.fit_settings import FitSettings

READS = ("layers", "position", "region", "gate")  # of what a head reads, what may differ within a bank
SHARED = ("epochs", "patience", "batch_size", "validation", "seed", "calibration")  # what heads of one bank have in common


@dataclass(frozen=True)
class HeadPlan:
    """One head of a bank: what it reads, how it is trained, and its name in the table."""

    config: SwiftConfig
    settings: FitSettings
    name: str = "head"


def plan_grid(config: SwiftConfig, settings: FitSettings | None = None, **choices: Sequence[Any]) -> list[HeadPlan]:
    """Return a plan for each combination of choices, each for what a head reads or for a field of ``FitSettings``.

    ``plan_grid(config, layers=[(-1,), (-4, -3, -2, -1)], loss=["bce", "dpo"])`` makes four, named by what they choose.
    Raises ValueError for any other name, and for values that cannot be.
    """
    settings = settings or FitSettings()
    how = {one.name for one in fields(FitSettings)}
    if "layers" in choices and config.source != "hidden":
        raise ValueError(f"layers cannot be varied: the source {config.source!r} is made after the last layer")
    for name, values in choices.items():
        if name not in READS and name not in how:
            raise ValueError(f"a bank of heads varies {', '.join(READS)} or a field of FitSettings, got {name!r}")
        if name in SHARED:
            raise ValueError(f"{name!r} is the same for all heads of a bank: it cannot be varied")
        if not isinstance(values, list | tuple) or not values:
            raise ValueError(f"{name} needs a list of values, got {values!r}")
    plans = []
    for values in product(*choices.values()):
        chosen = dict(zip(choices, values, strict=True))
        name = " ".join(f"{key}={_short(value)}" for key, value in chosen.items()) or "head"
        try:
            reads = replace(config, **{key: value for key, value in chosen.items() if key in READS})
            trained = replace(settings, **{key: value for key, value in chosen.items() if key not in READS})
        except (TypeError, AttributeError) as error:
            raise ValueError(f"a head cannot have {name}: {error}") from error
        plans.append(HeadPlan(reads, trained, name))
    return plans


def check_plans(plans: Sequence[HeadPlan]) -> None:
    """Raise ValueError unless there are plans and they share what a bank has once: epochs, batches, the split, the seed."""
    if not plans:
        raise ValueError("a bank needs at least one head")
    first = plans[0]
    for plan in plans[1:]:
        read, wanted = ((one.config.source, one.config.top_logprobs) for one in (plan, first))
        if read != wanted:
            raise ValueError(f"the heads of a bank share their source: {first.name!r} reads {wanted}, {plan.name!r} {read}")
        for name in SHARED:
            if getattr(plan.settings, name) != getattr(first.settings, name):
                values = (getattr(first.settings, name), getattr(plan.settings, name))
                raise ValueError(f"the heads of a bank share {name}: {first.name!r} has {values[0]}, {plan.name!r} {values[1]}")


def bank_layers(plans: Sequence[HeadPlan]) -> tuple[int, ...]:
    """Return the layers that the plans read between them, counted from 0: ascending where they differ."""
    sets = {plan.config.layers for plan in plans}
    return sets.pop() if len(sets) == 1 else tuple(sorted({layer for layers in sets for layer in layers}))


def bank_views(plans: Sequence[HeadPlan]) -> list[Reading]:
    """Return the positions and regions that the plans read between them, each once."""
    return list(dict.fromkeys(reading_of(plan.config) for plan in plans))


def table_row(plan: HeadPlan) -> dict[str, Any]:
    """Return what tells a head from others, JSON-ready."""
    config = {name: getattr(plan.config, name) for name in ("layers", "position", "region", "gate")}
    settings = {key: value for key, value in asdict(plan.settings).items() if key not in SHARED}
    return {"name": plan.name, **config, "layers": list(plan.config.layers), **settings}


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{...}"
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
