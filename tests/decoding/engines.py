"""An engine over a tiny model, prompts for it, and a count of the forward calls that it makes."""

from __future__ import annotations

import pytest

from swift_rm import score
from swift_rm.decoding.candidate_budget import CandidatePlan
from swift_rm.decoding.engine import Engine, PromptState
from swift_rm.sampling.generation import sampling_settings
from tests.reward_models import make_rm

PROMPTS = [[20, 21, 22, 23], [24, 25], [26, 27, 28], [29], [30, 31, 32]]
ENDLESS = {"eos_token_id": None, "max_new_tokens": 8}  # no row ends before the others


def make_engine(model, tokenizer, rm=None, plan=None, prune=None, n=4, **settings):
    settings = sampling_settings(model, 4, n, settings.pop("max_new_tokens", 10), settings)
    return Engine(model, tokenizer, rm or make_rm(), settings, plan or CandidatePlan(n, 1), prune)


def answer(engine, prompts=PROMPTS, seed=0, **settings):
    asked = [PromptState(prompt) for prompt in prompts]
    return engine.answer(asked, seed, **settings), asked


def check_rewards(model, rm, asked):
    for one in asked:
        complete = [candidate for candidate in one.candidates if candidate.complete]
        expected = score(model, None, rm, [one.prompt_ids] * len(complete), [candidate.token_ids for candidate in complete])
        assert [candidate.reward for candidate in complete] == pytest.approx(expected, abs=1e-4)


class Forwards:
    """Counts rows and tokens that go through a model, and raises where it is told to."""

    def __init__(self, model, fail=lambda rows, width: None):
        self.fail, self.calls = fail, []
        self.handle = model.model.embed_tokens.register_forward_hook(self.see)

    def see(self, module, args, output):
        rows, width = args[0].shape
        self.calls.append((rows, width))
        self.fail(rows, width)

    def __enter__(self):
        return self

    def __exit__(self, *details):
        self.handle.remove()
