"""The variants of the 2D + 2 head that are compared: one bank, trained at once from the same states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from swift_rm_kernels import head_scores, pool_heads
from torch import Tensor

from swift_rm import SwiftConfig
from swift_rm.features.read_states import Features
from swift_rm.features.row_selection import Reading, reading_of
from swift_rm.reward.head import combine
from swift_rm.training.fit_settings import FitSettings
from swift_rm.training.head_grid import HeadPlan
from swift_rm.training.head_validation import ValidatedHead

DEFAULT = "default"
ANSWER: Reading = ("token", "after:</think>")
STEPS: Reading = ("token", "steps:, ")
RESULTS: Reading = ("generating", "steps:, ")  # the state that wrote the comma: that at the last digit of a step's result
VIEWS: tuple[Reading, ...] = (("token", "response"), ("generating", "response"), ANSWER, STEPS, RESULTS)
ENSEMBLE = "ensemble of 5"
PESSIMISTIC = "ensemble of 5, pessimism 1"

VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # what differs from the default: read, trained
    DEFAULT: ({}, {}),
    "dpo": ({}, {"loss": "dpo"}),
    "hinge": ({}, {"loss": "hinge"}),
    "infonca": ({}, {"loss": "infonca"}),
    "nca": ({}, {"loss": "nca"}),
    "last 4 layers": ({"layers": 4}, {}),
    "last layer": ({"layers": 1}, {}),
    "generating": ({"position": "generating"}, {}),
    "answer only": ({"region": ANSWER[1]}, {}),
    "step ends": ({"region": STEPS[1]}, {}),
    "steps' results": ({"region": RESULTS[1], "position": RESULTS[0]}, {}),
    "standardise by layer": ({}, {"standardise": "layer"}),
    "not standardised": ({}, {"standardise": "none"}),
    "balanced": ({}, {"balance": "question"}),
    "centred": ({}, {"centre": True}),
    "no gate": ({"gate": False}, {}),
    "dpo, balanced": ({}, {"loss": "dpo", "balance": "question"}),
    "dpo, centred": ({}, {"loss": "dpo", "centre": True}),
    "dpo, last layer": ({"layers": 1}, {"loss": "dpo"}),
    "last 2 layers": ({"layers": 2}, {}),
    "last 4 layers, by layer": ({"layers": 4}, {"standardise": "layer"}),
    "last 4 layers, balanced": ({"layers": 4}, {"balance": "question"}),
    "learning rate 0.003": ({}, {"lr": 0.003}),
    ENSEMBLE: ({}, {"ensemble": 5}),
}


def head_plans(config: SwiftConfig, settings: FitSettings, names: Sequence[str] = tuple(VARIANTS)) -> list[HeadPlan]:
    """Return a plan for each variant of a head that reads all layers of ``config`` at each token."""
    plans = []
    for name in names:
        read, trained = VARIANTS[name]
        changes = {**read, "layers": config.layers[-read["layers"] :]} if "layers" in read else read
        plans.append(HeadPlan(replace(config, **changes), replace(settings, **trained), name))
    return plans


@torch.no_grad()
def bank_rewards(judged: Sequence[ValidatedHead], features: Features, layers: Sequence[int]) -> dict[str, Tensor]:
    """Return each head's rewards ``[B]`` by name, all in one reading of the states; an ensemble's also with pessimism."""
    weights, biases, gated, columns, owners = [], [], [], [], []
    for i, one in enumerate(judged):
        config = one.rm.config
        wanted = torch.cat([torch.arange(config.hidden_size) + config.hidden_size * layers.index(n) for n in config.layers])
        for weight, bias in one.rm.head.split():
            wide, offset = weight.new_zeros(2, features.states.shape[1]), bias.new_zeros(2)
            wide[-len(weight) :, wanted], offset[-len(bias) :] = weight, bias
            weights.append(wide)
            biases.append(offset)
            gated.append(config.gate)
            columns.append(features.views.index(reading_of(config)))
            owners.append(i)
    z, r = head_scores(features.states, torch.stack(weights), torch.stack(biases), features.offsets, gated=torch.tensor(gated))
    rewards = pool_heads(z, r, features.offsets, None if features.masks is None else features.masks[:, columns])
    found = {}
    for i, one in enumerate(judged):
        own = rewards[:, [place for place, owner in enumerate(owners) if owner == i]]
        found[one.plan.name] = one.rm.head.combine(own)
        if one.plan.name == ENSEMBLE:
            found[PESSIMISTIC] = combine(own, 1.0)
    return found
