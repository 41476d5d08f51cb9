"""Features with a planted signal, and how well a head found it."""

from __future__ import annotations

import torch

from swift_rm import SwiftConfig
from swift_rm.evaluation.auroc import within_question_auroc
from swift_rm.features.read_states import Features

CONFIG = SwiftConfig(8, (0,))


def planted(questions=60, n=6, width=8, noise=0.5, seed=0):
    """States in which one direction tells right from wrong on one token of each response, and scales differ wildly."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(3, 7, (questions * n,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), sizes.cumsum(0)])
    labels = torch.randint(0, 2, (questions * n,), generator=generator)
    states = torch.randn(int(offsets[-1]), width, generator=generator) * noise
    states[offsets[1:] - 1, 0] += 2.0 * (2 * labels - 1)
    states[offsets[1:] - 1, 1] += 3.0  # where to look
    return Features(states * torch.logspace(-3, 3, width) + 5, offsets, labels, torch.arange(questions).repeat_interleave(n))


def auroc(rm, features):
    with torch.no_grad():
        rewards = rm(features.states, features.offsets).view(features.questions, -1)
    return float(torch.tensor(within_question_auroc(rewards.numpy(), features.labels.view_as(rewards).numpy())).nanmean())


def rollouts(make_rollout, questions=60, n=4):
    """Right responses hold token 7, wrong ones 9: even random states tell them apart."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for q in range(questions):
        for i in range(n):
            rest = torch.randint(10, 40, (4,), generator=generator).tolist()
            made.append(
                make_rollout(f"q{q}", label=i % 2, response_ids=[*rest, 7 if i % 2 else 9, 2], prompt_ids=[1, 10 + q % 30])
            )
    return made
