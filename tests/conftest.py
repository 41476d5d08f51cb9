from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for the network is wrong

import pytest
import torch
from homework_corpus import make_tokenizer
from tiny_models import tiny_model

from swift_rm.rollouts import Rollout


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def llama(tokenizer):
    """A random Llama of three layers that speaks the homework vocabulary, sharply enough to end its sentences."""
    torch.manual_seed(1)
    model = tiny_model("llama", vocab_size=len(tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


@pytest.fixture
def make_rollout():
    def make(question="q", label=1, reward=None, response_ids=(5, 6), **fields):
        values = {
            "prompt": "p", "prompt_ids": [1, 2, 3], "response": "r", "response_ids": list(response_ids), "finish_reason": "stop",
            "answer": "a", "label": label, "reward": reward, "logprob_mean": -0.5, **fields,
        }  # fmt: skip
        return Rollout(question, **values)

    return make
