"""The offline engine's loop and early stopping, with an engine that a test prescribes; no vLLM needed."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from swift_rm.decoding.pruning import Confidence
from swift_rm.integrations.vllm.offline.early_stop import EarlyStop
from swift_rm.integrations.vllm.offline.engine_loop import EngineLoop
from swift_rm.integrations.vllm.worker.sample import Sample
from tests.integrations.vllm.random_reward_model import random_model


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
