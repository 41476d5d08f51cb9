"""What the vLLM adapter computes beside vLLM: versions, rows, kept scores, rewards of samples, refusals; no vLLM needed."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from swift_rm import SwiftConfig, SwiftRewardModel
from swift_rm.decoding.pruning import Confidence
from swift_rm.files.tested_versions import TestedRange
from swift_rm.integrations.vllm.offline.early_stop import EarlyStop
from swift_rm.integrations.vllm.offline.engine_loop import EngineLoop
from swift_rm.integrations.vllm.offline.open_llm import check_llm, open_llm
from swift_rm.integrations.vllm.offline.sample_requests import SampleSettings, token_limit
from swift_rm.integrations.vllm.worker.kept_scores import KeptScores
from swift_rm.integrations.vllm.worker.request_names import sample_names
from swift_rm.integrations.vllm.worker.sample import Sample, sample_rewards, score_width
from swift_rm.integrations.vllm.worker.settings import (
    additional_config,
    check_served_model,
    load_reward_models,
    refuse_unsupported,
)
from swift_rm.integrations.vllm.worker.shown_layers import ShownLayers
from swift_rm.integrations.vllm.worker.step_rows import pick, rows_of, rows_of_v2


def test_the_adapter_without_vllm_says_what_to_install(monkeypatch):
    monkeypatch.setattr("swift_rm.integrations.vllm.versions.version.KNOWN", (TestedRange("no-such-vllm", "0.32.0", "0.33.0"),))
    for name in ("VLLMBestOfN", "RewardWorker", "RewardMiddleware", "LogitsReward"):
        with pytest.raises(ImportError, match=r'which is not installed: pip install "vllm>=0.32,<0.34"'):
            exec(f"from swift_rm.integrations.vllm import {name}")
    with pytest.raises(ImportError, match=r"cannot import name 'Nothing'"):
        exec("from swift_rm.integrations.vllm import Nothing")


def test_the_package_itself_imports_no_vllm():
    code = "import sys, swift_rm.integrations.vllm; print('vllm' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "False"


def v1_runner(requests, starts, computed, prompts):
    batch = SimpleNamespace(
        num_reqs=len(requests), req_ids=[*requests, "old"],
        num_computed_tokens_cpu=np.array([*computed, 99]), num_prompt_tokens=np.array([*prompts, 9]),
    )  # fmt: skip
    return SimpleNamespace(input_batch=batch, query_start_loc=SimpleNamespace(np=np.array([*starts, 77], dtype=np.int32)))


def test_rows_of_a_mixed_step():
    """A decode, a prompt in two parts (its first and its second), a whole prompt, and one that is computed again."""
    runner = v1_runner(["a", "b", "c", "d", "e"], [0, 1, 5, 8, 12, 18], [7, 0, 4, 0, 0], [5, 9, 7, 4, 3])
    rows = rows_of(runner)
    at, owner, place = rows.produced()
    named = [(rows.requests[i], int(k)) for i, k in zip(owner, place, strict=True)]
    assert named == [("a", 3), ("c", 0), ("d", 0), ("e", 0), ("e", 1), ("e", 2), ("e", 3)]
    assert at.tolist() == [0, 7, 11, 14, 15, 16, 17]
    last, place = rows.sampled()
    assert [(rows.requests[i], int(k)) for i, k in zip(last, place, strict=True)] == [("a", 3), ("c", 0), ("d", 0), ("e", 3)]
    states = [torch.arange(20.0)[:, None], torch.arange(20.0, 40.0)[:, None]]  # padded to 20 rows
    assert [layer.flatten().tolist() for layer in pick(states, at, 18)] == [at.tolist(), (at + 20).tolist()]
    assert len(pick(states, np.arange(18), 18)[0]) == 18


def test_rows_of_the_v2_runner_are_the_same():
    one = rows_of(v1_runner(["a", "b"], [0, 1, 5], [7, 0], [5, 3]))
    batch = SimpleNamespace(
        num_reqs=2, req_ids=["a", "b"], query_start_loc_np=np.array([0, 1, 5, 5]), num_computed_tokens_np=np.array([7, 0]),
        idx_mapping_np=np.array([4, 2]),
    )  # fmt: skip
    runner = SimpleNamespace(req_states=SimpleNamespace(prompt_len=SimpleNamespace(np=np.array([0, 0, 3, 0, 5]))))
    other = rows_of_v2(runner, batch)
    assert one.requests == other.requests
    for name in ("starts", "first", "prompt"):
        assert getattr(one, name).tolist() == getattr(other, name).tolist()


def test_scores_are_kept_by_place_whatever_the_order():
    kept = KeptScores(2)
    for step in range(100):  # across the steps that wait, and across growth
        kept.add(["a", "b"], np.array([0, 1, 1]), np.array([step, 2 * step, 2 * step + 1]), torch.full((3, 2), float(step)))
    a, b, none = kept.read(["a", "b", "never"])
    assert a[:, 0].tolist() == list(range(100)) and b[:, 1].tolist() == [i // 2 for i in range(200)] and none.shape == (0, 2)
    kept.add(["b"], np.zeros(4, np.int64), np.arange(4), torch.full((4, 2), 7.0))  # computed again after preemption
    assert kept.read(["b"])[0][:5, 0].tolist() == [7, 7, 7, 7, 2]
    kept.add(["c"], np.array([0]), np.array([3]), torch.ones(1, 2))
    assert np.isnan(kept.read(["c"])[0][:3]).all() and kept.read(["c"])[0][3].tolist() == [1, 1]
    kept.forget(["a", "b", "c", "never"])
    assert len(kept) == 0 and kept.read(["a"])[0].shape == (0, 2)


def test_what_nobody_asks_for_is_forgotten_after_a_while():
    kept = KeptScores(1, most_finished=3)
    for name in "abcdef":
        kept.add([name], np.array([0]), np.array([0]), torch.zeros(1, 1))
        kept.finish([name])
    assert len(kept) == 3 and [len(found) for found in kept.read(list("abcdef"))] == [0, 0, 0, 1, 1, 1]


def test_what_was_taken_does_not_push_out_what_was_not():
    """A request that was asked for before it ended leaves nothing, and counts for nothing."""
    kept = KeptScores(1, most_finished=3)

    def sampled(name):
        kept.add([name], np.array([0]), np.array([0]), torch.zeros(1, 1))

    for name in "abc":  # nobody has asked for these yet
        sampled(name)
        kept.finish([name])
    for number in range(50):
        sampled(str(number))
        kept.forget([str(number)])
        kept.finish([str(number)])
    assert [len(found) for found in kept.read(list("abc"))] == [1, 1, 1]
    sampled("d")
    kept.finish(["d"])
    assert [len(found) for found in kept.read(list("abcd"))] == [0, 1, 1, 1]
    kept.spoil("e", "why")
    kept.spoil("e", "what came of it")
    assert kept.faults(["a", "d", "e"]) == [None, None, "why"]
    kept.forget(["e"])
    assert kept.faults(["e"]) == [None]


def random_model(**settings) -> SwiftRewardModel:
    torch.manual_seed(1)
    rm = SwiftRewardModel(SwiftConfig(8, (0, 1), **settings))
    torch.nn.init.normal_(rm.head.weight)
    torch.nn.init.normal_(rm.head.bias)
    return rm


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("position", ["generating", "token"])
def test_rewards_from_scores_are_those_from_states(heads, gate, position):
    """The worker's numbers, pooled here, are what the reward model itself says of the states."""
    rm = random_model(heads=heads, pessimism=0.5 if heads > 1 else 0.0, gate=gate, position=position)
    width = score_width(rm)
    samples, expected = [], []
    for number, tokens in enumerate([5, 1, 9]):
        states = torch.randn(tokens + 1, 16)  # place 0 is the prompt's last
        scores = states @ rm.head.weight.T + rm.head.bias
        numbers = np.concatenate([np.full((tokens + 1, 2), 9.0), scores.detach().numpy()], axis=1).astype(np.float32)
        samples.append(Sample(str(number), 0, list(range(tokens)), scores=numbers))
        read = states[:-1] if position == "generating" else states[1:]
        expected.append(rm(read, torch.tensor([0, tokens])).item())
    found = sample_rewards(rm, None, samples, column=2)
    assert width == heads * (2 if gate else 1)
    assert [reward for reward, _ in found] == pytest.approx(expected, abs=1e-5)
    assert sample_rewards(rm, None, []) == []
    without = Sample("x", 0, [1, 2])
    assert np.isnan(sample_rewards(rm, None, [without])[0][0])
    assert without.decoded(float("nan"), None, 0.0).finish_reason == "cancelled"
    without.finish_reason = "stop"
    assert without.decoded(float("nan"), None, 0.0).flag == "not_finite"


def test_a_missing_place_makes_no_reward():
    rm = random_model()
    scores = np.ones((3, 2), np.float32)
    scores[1] = np.nan
    assert np.isnan(sample_rewards(rm, None, [Sample("a", 0, [1, 2, 3], scores=scores)])[0][0])


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


def test_fewer_scores_than_tokens_make_no_reward(monkeypatch):
    """A reward of the tokens that have scores would look like one of the whole sample."""
    scores = np.ones((2, 2), np.float32).tobytes()
    llm = SimpleNamespace(llm_engine=None, collective_rpc=lambda method, args: [None, [scores] * len(args[0])])
    loop = EngineLoop(llm, 2)
    loop.read([whole := Sample("a", 0, [5, 6])])
    assert whole.whole and whole.scores.tolist() == [[1, 1], [1, 1]]
    monkeypatch.setattr("swift_rm.integrations.vllm.versions.version.installed_version", lambda: "0.33.0")
    with pytest.raises(RuntimeError, match=r"^vLLM 0.33.0: its worker has scores of 2 of a sample's 3 tokens"):
        loop.read([Sample("b", 0, [5, 6, 7])])
    scores = "the worker's reason"
    loop.llm = SimpleNamespace(collective_rpc=lambda method, args: [None, [scores] * len(args[0])])
    with pytest.raises(RuntimeError, match=r"^the worker's reason$"):
        loop.read([Sample("c", 0, [5])])


def test_samples_that_vllm_does_not_return_are_missed(monkeypatch):
    monkeypatch.setattr("swift_rm.integrations.vllm.versions.version.installed_version", lambda: "0.33.0")

    class Engine:
        renderer = SimpleNamespace(render_cmpl=list)

        def __init__(self, indices):
            self.indices, self.name = indices, None

        def add_request(self, name, prompt, params):
            self.name = name

        def has_unfinished_requests(self):
            return self.name is not None

        def step(self):
            outputs = [
                SimpleNamespace(index=i, token_ids=[1], cumulative_logprob=None, finish_reason="stop") for i in self.indices
            ]
            done, self.name = SimpleNamespace(finished=True, request_id=self.name, outputs=outputs), None
            return [done]

    one = np.ones((1, 2), np.float32).tobytes()
    for indices, said in (([0, 1], None), ([0], "returned 1 samples of a request for 2"), ([0, 0], "returned 2 samples of a")):
        loop = EngineLoop(SimpleNamespace(llm_engine=Engine(indices), collective_rpc=lambda _, args: [[one] * len(args[0])]), 2)
        monkeypatch.setattr(loop, "running", lambda names, n: nullcontext())
        if said is None:
            (group,) = loop.sample([[5]], 2, ["params"])
            assert [sample.token_ids for sample in group] == [[1], [1]]
        else:
            with pytest.raises(RuntimeError, match=rf"^vLLM 0.33.0 {said}"):
                loop.sample([[5]], 2, ["params"])


class FakeLoop:
    """An engine that makes one token a step for each sample, and the scores that a test prescribes."""

    def __init__(self, lengths, rewards):
        self.lengths, self.rewards, self.samples, self.step_number, self.aborted = lengths, rewards, {}, 0, []
        self.engine = self
        self.names: list[str] = []

    def running(self, names):
        from contextlib import nullcontext

        return nullcontext()

    def add(self, name, prompt, params):
        self.names.append(name)

    def has_unfinished_requests(self):
        return any(self.step_number < self.lengths[i] and name not in self.aborted for i, name in enumerate(self.names))

    def step(self):
        self.step_number += 1
        for i, name in enumerate(self.names):
            if self.step_number <= self.lengths[i] and name not in self.aborted:
                done = "stop" if self.step_number == self.lengths[i] else None
                one = SimpleNamespace(token_ids=[i], cumulative_logprob=-1.0, finish_reason=done)
                yield SimpleNamespace(request_id=name, outputs=[one])

    def abort_request(self, names):
        self.aborted += names

    def read(self, samples, keep=False):
        for sample in samples:
            i = self.names.index(sample.name)
            sample.scores = np.array([[0.0, self.rewards[i]]] * len(sample.token_ids), np.float32).reshape(-1, 2)


def test_hopeless_samples_are_aborted_and_the_best_goes_on():
    loop = FakeLoop(lengths=[10, 10, 3, 10], rewards=[2.0, -3.0, -9.0, 1.5])
    stop = EarlyStop(loop, random_model(), None, Confidence(min_tokens=4, margin=2.0, every=2))
    (samples,) = stop.sample([[1, 2]], [[None] * 4])
    assert [sample.finish_reason for sample in samples] == ["stop", "pruned", "stop", "stop"]
    assert [len(sample.token_ids) for sample in samples] == [10, 4, 3, 10]
    assert loop.aborted == [samples[1].name]
