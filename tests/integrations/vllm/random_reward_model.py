"""A reward model of two layers with random weights, as the worker and what reads its scores need one."""

from __future__ import annotations

import torch

from swift_rm import SwiftConfig, SwiftRewardModel


def random_model(**settings) -> SwiftRewardModel:
    torch.manual_seed(1)
    rm = SwiftRewardModel(SwiftConfig(8, (0, 1), **settings))
    torch.nn.init.normal_(rm.head.weight)
    torch.nn.init.normal_(rm.head.bias)
    return rm
