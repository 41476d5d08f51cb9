"""Random reward models of hidden states, logits and log-probabilities, and the published formula, one response at a time."""

from __future__ import annotations

import torch

from swift_rm import SwiftConfig, SwiftRewardModel
from tests.tiny_models import VOCAB

LOGPROB_CONFIGS = {
    "logits": SwiftConfig.of_logits(VOCAB),
    "top 3": SwiftConfig.of_top_logprobs(3),
    "chosen": SwiftConfig.of_top_logprobs(0),
}


def make_rm(hidden=32, layers=(0, 2, 3), **config):
    rm = SwiftRewardModel(SwiftConfig(hidden, layers, **config))
    with torch.no_grad():
        for parameter in rm.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    return rm


def make_reader(config, **changes):
    rm = SwiftRewardModel(config if not changes else SwiftConfig.from_dict({**config.to_dict(), **changes}))
    with torch.no_grad():
        for parameter in rm.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    return rm


@torch.no_grad()
def by_the_formula(model, rm, prompt, response):
    """One sequence at a time, unpadded, through output_hidden_states, the quotient as it is published."""
    hidden = model(torch.tensor([prompt + response]), output_hidden_states=True).hidden_states
    start = len(prompt) - (rm.config.position == "generating")
    h = torch.cat([hidden[layer][0, start : start + len(response)] for layer in rm.config.layers], dim=-1)
    scores = h @ rm.head.weight.T + rm.head.bias
    gate = torch.sigmoid(scores[:, 0]) if rm.config.gate else torch.ones(len(h))
    return float((gate * scores[:, -1]).sum() / gate.sum())
