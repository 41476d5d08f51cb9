from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for the network is wrong

import pytest
import torch

if not torch.cuda.is_available():  # Triton's kernels run on CPU tensors, program by program; read when they are first imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

from homework_corpus import make_tokenizer

from swift_rm.records.rollouts import Rollout
from tests.api.api_server import KEY, fake_api
from tests.report.pages import browse  # noqa: F401  a fixture of the tests of pages, wherever they are
from tests.tiny_models import tiny_model


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
def api(monkeypatch):
    """An endpoint that answers as a test says."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with fake_api() as api:
        yield api


@pytest.fixture
def make_rollout():
    def make(question="q", label=1, reward=None, response_ids=(5, 6), **fields):
        values = {
            "prompt": "p", "prompt_ids": [1, 2, 3], "response": "r", "response_ids": list(response_ids), "finish_reason": "stop",
            "answer": "a", "label": label, "reward": reward, "logprob_mean": -0.5, **fields,
        }  # fmt: skip
        return Rollout(question, **values)

    return make


@pytest.fixture
def poisoned(monkeypatch):
    """Memory that nobody has written yet is NaN, or a large number, so that reading it shows."""

    def poison(make):
        def made(*args, **kwargs):
            tensor = make(*args, **kwargs)
            if tensor.device.type == "meta" or isinstance(tensor, torch._subclasses.FakeTensor):
                return tensor
            return tensor.fill_(torch.nan if tensor.is_floating_point() else 77 if tensor.dtype != torch.bool else True)

        return made

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poison(getattr(owner, name)))
