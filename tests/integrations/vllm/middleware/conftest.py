"""Applications whose engine has a reward model, without vLLM, and the rewards that `score` gives."""

from dataclasses import replace

import pytest

from swift_rm import SwiftRewardModel, score
from swift_rm.integrations.vllm.server import engine_calls
from swift_rm.models.load import load_language_model, resolve
from swift_rm.tokens.encoding import encode_prompt
from tests.integrations.vllm.fake_server import FakeApp, FakeEngine
from tests.integrations.vllm.middleware.replies import TEXTS


@pytest.fixture(scope="session")
def transformers():
    return load_language_model(progress=False)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    made = tmp_path_factory.mktemp("reward-models")
    for name, changes in {
        "token": {}, "generating": {"position": "generating"}, "marker": {"position": "generating", "region": "after:</think>"},
    }.items():  # fmt: skip
        rm = SwiftRewardModel.from_pretrained(resolve("tiny-reasoner-reward"))
        rm.config = replace(rm.config, **changes)
        rm.save_pretrained(made / name)
    return made


@pytest.fixture(autouse=True)
def no_vllm(monkeypatch):
    monkeypatch.setattr(engine_calls, "one_token", lambda: "one token")


@pytest.fixture
def make(transformers, folders):
    """Make an application whose engine has a reward model of a kind."""

    def made(kind="token", texts=TEXTS, **more):
        model, tokenizer = transformers
        engine = FakeEngine(model, tokenizer, SwiftRewardModel.from_pretrained(folders / kind), folders / kind)
        return FakeApp(engine, [[*encode_prompt(tokenizer, text), tokenizer.eos_token_id] for text in texts], **more)

    return made


@pytest.fixture
def expected(transformers):
    def rewards(app, prompts, responses):
        return score(*transformers, app.engine.rm, prompts, responses)

    return rewards
