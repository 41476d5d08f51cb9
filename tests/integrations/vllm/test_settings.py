"""What vLLM is told and refused, which layers it shows, and the settings of samples; no vLLM needed."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from swift_rm import SwiftConfig, SwiftRewardModel
from swift_rm.integrations.vllm.offline.open_llm import check_llm, open_llm
from swift_rm.integrations.vllm.offline.sample_requests import SampleSettings, token_limit
from swift_rm.integrations.vllm.worker.request_names import sample_names
from swift_rm.integrations.vllm.worker.settings import (
    additional_config,
    check_served_model,
    load_reward_models,
    refuse_unsupported,
)
from swift_rm.integrations.vllm.worker.shown_layers import ShownLayers
from tests.integrations.vllm.random_reward_model import random_model


def vllm_config(**changes):
    parallel = SimpleNamespace(
        pipeline_parallel_size=1, data_parallel_size=1, prefill_context_parallel_size=1, distributed_executor_backend="mp",
        worker_cls="vllm.v1.worker.cpu_worker.CPUWorker",
    )  # fmt: skip
    config = SimpleNamespace(
        parallel_config=parallel, speculative_config=None,
        model_config=SimpleNamespace(runner_type="generate", is_diffusion=False),
        additional_config={}, cache_config=SimpleNamespace(kv_sharing_fast_prefill=False),
    )  # fmt: skip
    for name, value in changes.items():
        setattr(parallel if hasattr(parallel, name) else config, name, value)
    return config


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size=2: no worker sees all layers"),
        ({"data_parallel_size": 4}, "data_parallel_size=4"),
        ({"prefill_context_parallel_size": 2}, "prefill_context_parallel_size=2: no worker sees a whole prompt"),
        ({"distributed_executor_backend": "external_launcher"}, "external_launcher.*only rank 0 has rewards"),
        ({"cache_config": SimpleNamespace(kv_sharing_fast_prefill=True)}, "kv_sharing_fast_prefill leaves layers out"),
        ({"speculative_config": object()}, "speculative decoding is on"),
        ({"model_config": SimpleNamespace(runner_type="pooling", is_diffusion=False)}, "vLLM runs as 'pooling'"),
        ({"model_config": SimpleNamespace(runner_type="generate", is_diffusion=True)}, "a diffusion model writes its tokens"),
    ],
)
def test_settings_of_vllm_that_do_not_go_with_rewards(changes, said):
    with pytest.raises(ValueError, match=said):
        refuse_unsupported(vllm_config(**changes))
    refuse_unsupported(vllm_config())


def test_what_vllm_must_be_told(tmp_path):
    for told in ({}, {"swift_rm": "folder"}, {"swift_rm": {}}, None):
        with pytest.raises(ValueError, match=r"vLLM's worker needs a reward model, --additional-config .*FOLDER"):
            load_reward_models(told)
    config = additional_config("tiny-reasoner-reward", "tiny-reasoner-progress")
    assert json.loads(json.dumps(config)) == config and len(load_reward_models(config)) == 2
    SwiftRewardModel(SwiftConfig.of_top_logprobs(5)).save_pretrained(tmp_path / "api")
    with pytest.raises(ValueError, match=r"reads log-probabilities: use it in front of vLLM's server"):
        load_reward_models(additional_config(str(tmp_path / "api")))
    random_model().save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"guide of a pruning rule reads other states"):
        load_reward_models(additional_config("tiny-reasoner-reward", str(tmp_path / "other")))
    with pytest.raises(FileNotFoundError, match=r"no reward model 'nowhere'"):
        load_reward_models(additional_config("nowhere"))


def test_another_base_model_is_refused_with_both_names():
    (rm,) = load_reward_models(additional_config("tiny-reasoner-reward"))

    def served(**sizes):
        text = SimpleNamespace(**{"hidden_size": 96, "num_hidden_layers": 4, **sizes})
        return SimpleNamespace(hf_text_config=text, model="acme/other", get_vocab_size=lambda: 40)

    assert check_served_model(rm.config, served()) == 4
    with pytest.raises(ValueError, match=r"width 96 .*tiny-reasoner.* but acme/other has hidden size 4096"):
        check_served_model(rm.config, served(hidden_size=4096))
    with pytest.raises(ValueError, match=r"with 4 layers, but acme/other has 32"):
        check_served_model(rm.config, served(num_hidden_layers=32))
    with pytest.raises(ValueError, match=r"fingerprint .* but those of acme/other have abc"):
        check_served_model(rm.config, served(), "abc")
    with pytest.raises(ValueError, match=r"layer 9 is out of range"):
        ShownLayers(SwiftConfig(96, (9,)), 4)


def test_layers_come_in_the_reward_models_order():
    shown = ShownLayers(SwiftConfig(8, (-1, 0, 2)), 4)
    hidden, zero, two = (torch.full((1, 8), value) for value in (4.0, 0.0, 2.0))
    assert [layer[0, 0].item() for layer in shown.pick(hidden, [zero, two])] == [4, 0, 2]
    with pytest.raises(RuntimeError, match=r"returned 0 layers' states instead of those of \(0, 2\)"):
        shown.pick(hidden, None)
    assert ShownLayers(SwiftConfig(8, (-1,)), 4).pick(hidden, None) == [hidden]


def test_the_embeddings_are_refused_where_vllm_overwrites_them():
    eager, compiled = (SimpleNamespace(compilation_config=SimpleNamespace(mode=mode)) for mode in (0, 3))
    shown = ShownLayers(SwiftConfig(8, (0, -1)), 4)
    with pytest.raises(ValueError, match=r"reads layer 0, the embeddings, .*leave enforce_eager out"):
        shown.check_eager(eager, on_cpu=False)
    shown.check_eager(eager, on_cpu=True)
    shown.check_eager(compiled, on_cpu=False)
    ShownLayers(SwiftConfig(8, (1, -1)), 4).check_eager(eager, on_cpu=False)


def test_how_vllm_is_opened():
    with pytest.raises(ValueError, match=r"a reward model is needed: VLLMBestOfN\('m', 'my-reward-model'\)"):
        open_llm("m", None, None, {})
    with pytest.raises(ValueError, match=r"worker_cls and additional_config"):
        open_llm("m", "rm", None, {"worker_cls": "mine"})
    with pytest.raises(ValueError, match=r"worker_cls and additional_config\['swift_rm'\] are set here"):
        open_llm("m", "rm", None, {"additional_config": {"swift_rm": {}}})
    llm = SimpleNamespace(llm_engine=SimpleNamespace(vllm_config=vllm_config()))
    assert open_llm(llm, None, None, {}) is llm
    with pytest.raises(ValueError, match=r"guide, dtype: the LLM is open"):
        open_llm(llm, None, "g", {"dtype": "float32"})
    with pytest.raises(ValueError, match=r"CPUWorker', which scores nothing"):
        check_llm(llm)


def test_settings_of_samples():
    assert sample_names("r", 1) == ["r"] and sample_names("r", 3) == ["0_r", "1_r", "2_r"]
    assert token_limit([[1] * 10, [1] * 30], None, 512) == 482 and token_limit([[1]], None, 9000) == 1024
    with pytest.raises(ValueError, match=r"a prompt of 30 tokens leaves no room for 500 new tokens: vLLM's context is 512"):
        token_limit([[1] * 30], 500, 512)
    for name in ("n", "max_tokens", "seed", "logprobs", "output_kind"):
        with pytest.raises(ValueError, match=f"{name} is set by arguments of this call"):
            SampleSettings(8, None, True, {name: 1})
