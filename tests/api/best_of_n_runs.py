"""Requests for the best of N of an API, its reward model, and a server that fails on some questions, for tests."""

from __future__ import annotations

import torch

from swift_rm import ApiBestOfN, SwiftConfig, SwiftRewardModel
from tests.api.api_server import MODEL, answer, status

PROMPTS = ["1 + 1", [{"role": "user", "content": "1 + 2"}], "1 + 3"]


def reward_model(top=3, base_model=MODEL, heads=1):
    torch.manual_seed(top)
    rm = SwiftRewardModel(SwiftConfig.of_top_logprobs(top, base_model=base_model, heads=heads))
    torch.nn.init.normal_(rm.head.weight)
    return rm


def best(api, rm=None, **options):
    made = ApiBestOfN(MODEL, rm or reward_model(), api.url, **{"n": 4, "retries": 1, "answer": answer_of, **options})
    made.endpoint.longest_wait_s = 0.01
    return made


def answer_of(text):
    return text.rpartition("= ")[2] or None


def work(api):
    """The requests but the probe."""
    return api.requests[1:]


def fails_on(words, fault=None):
    def server(handler, request):
        mine = any(words in message["content"] for message in request["messages"])
        ((fault or status(500, "oh no")) if mine else answer())(handler, request)

    return server
