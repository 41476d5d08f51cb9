"""Models that the tests of the gateway's local backend share."""

import pytest

from swift_rm.models.load import load_language_model, resolve
from swift_rm.reward.reward_model import SwiftRewardModel
from tests.reward_models import make_rm


@pytest.fixture(scope="module")
def tiny():
    model, tokenizer = load_language_model("tiny-reasoner", progress=False)
    return model, tokenizer, SwiftRewardModel.from_pretrained(resolve("tiny-reasoner-reward"))


@pytest.fixture
def endless(llama, tokenizer, monkeypatch):
    """A model that never ends by itself."""
    monkeypatch.setattr(llama.generation_config, "eos_token_id", None)
    return llama, tokenizer, make_rm()
