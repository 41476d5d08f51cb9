"""What an engine would have recorded that agrees with transformers, and the same run with a difference."""

from dataclasses import replace

import torch

from swift_rm import SwiftRewardModel, score
from swift_rm.parity.engine_check import check_engine
from swift_rm.parity.recorded_run import EngineRun, RecordedResponse

LAYERS, D = (0, 2, -1), 32
GENERATOR = torch.Generator().manual_seed(0)
RESPONSES = [
    (torch.randint(3, 40, (prompt,), generator=GENERATOR).tolist(), torch.randint(3, 40, (length,), generator=GENERATOR).tolist())
    for prompt, length in [(5, 9), (3, 14), (7, 1), (4, 6)]
]


def random_head(config):
    rm = SwiftRewardModel(config)
    for parameter in rm.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(1))
    return rm


def states_of(model, prompt, response, layers):
    """What an engine is to show, by transformers' own tuple: ``[R, D]``."""
    with torch.no_grad():
        hidden = model(torch.tensor([prompt + response]), output_hidden_states=True).hidden_states
    rows = slice(len(prompt) - 1, len(prompt) + len(response) - 1)
    return torch.cat([hidden[layer][0, rows] for layer in layers], dim=1).float().numpy()


def engine_run(model, tokenizer, rm, dtype="float32", layers=LAYERS):
    rewards = score(model, tokenizer, rm, *zip(*RESPONSES, strict=True), batch_size=1)
    return EngineRun("fake", "1.0", dtype, "cpu", [
        RecordedResponse(prompt, response, states_of(model, prompt, response, layers), reward)
        for (prompt, response), reward in zip(RESPONSES, rewards, strict=True)
    ])  # fmt: skip


def changed(run, change):
    """The same run with other states."""
    return replace(run, responses=[replace(one, states=change(one.states.copy())) for one in run.responses])


def check(run, rm, models):
    return check_engine(run, "a-model", "a-reward-model", rm, models)
