"""What vLLM's worker computes is counted: each state is the one of its token, or it is said what is wrong, by which vLLM."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from swift_rm.integrations.vllm.worker.sample import Sample
from swift_rm.integrations.vllm.worker.step_counts import OutOfStep
from tests.integrations.vllm.fake_worker import FakeWorker, fake_vllm, reward_worker, state


@pytest.fixture(autouse=True)
def version(monkeypatch):
    monkeypatch.setattr("swift_rm.integrations.vllm.versions.version.installed_version", lambda: "0.33.0")


@pytest.fixture
def room():
    with fake_vllm() as room:
        yield room


@pytest.fixture(params=[False, True], ids=["V1 runner", "V2 runner"])
def made(room, request, tmp_path):
    return reward_worker(room, tmp_path, request.param)


@pytest.fixture
def worker(made):
    return made[0]


@pytest.fixture
def rm(made):
    return made[1]


def taken(worker, name, keep=False):
    (told,) = worker.take_scores([name], keep)
    return told if isinstance(told, str) else np.frombuffer(told, np.float32).reshape(-1, 2)


def expected(rm, name, prompt, places):
    last = torch.stack([state(name, prompt - 1 + place) for place in range(places)])
    return (torch.cat([last / 2, last], dim=1) @ rm.head.weight.T + rm.head.bias).detach().numpy()


def test_what_vllm_does_with_its_batches_changes_no_score(worker, rm):
    """Prompts in parts and from the cache, requests that wait for a step, that come in another order, that are computed again."""
    worker.step({"a": 4, "b": 3}, new=[("a", 4, 0), ("b", 6, 0)])
    worker.step({"a": 1, "b": 3, "c": 1}, new=[("c", 9, 8)])
    worker.step({"c": 1, "b": 1})
    worker.step({"a": 1, "b": 1, "c": 1})
    worker.step({"a": 1, "b": 1, "c": 1})
    worker.step({"a": 1, "c": 1})  # b is preempted here,
    worker.step({"a": 1, "c": 1, "b": 9}, resumed={"b": 0})  # and computed again
    worker.step({"b": 1, "c": 1}, finished=["a"])
    worker.step({"b": 1, "c": 1}, resumed={"c": 8 + 3})  # begins in its response, which was in the cache
    for name, prompt, places in (("a", 4, 6), ("b", 6, 6), ("c", 9, 7)):
        assert taken(worker, name, keep=True)[:places] == pytest.approx(expected(rm, name, prompt, places), abs=1e-5), name
    assert worker.kept_requests() == 3


def test_a_step_of_the_same_requests_is_counted_too(worker):
    worker.step({"a": 4, "b": 4}, new=[("a", 4, 0), ("b", 4, 0)])
    for _ in range(5):
        worker.step({"a": 1, "b": 1})
    worker.computed["b"] += 1
    worker.step({"a": 1, "b": 1})
    assert len(taken(worker, "a")) == 7
    assert taken(worker, "b") == "vLLM 0.33.0 skipped the states of 1 tokens of a request, from 9 to 10"


def test_a_skipped_step_leaves_its_request_without_scores_and_says_so(worker):
    worker.step({"a": 4, "b": 4}, new=[("a", 4, 0), ("b", 4, 0)])
    worker.computed["a"] += 2
    worker.step({"a": 1, "b": 1})
    worker.step({"a": 1, "b": 1})
    assert taken(worker, "a") == "vLLM 0.33.0 skipped the states of 2 tokens of a request, from 4 to 6"
    assert len(taken(worker, "b")) == 3
    assert worker.kept_requests() == 0
    assert len(taken(worker, "a")) == 0  # it was told


def test_a_response_whose_first_state_never_came_has_no_scores(worker):
    worker.step({"a": 1}, new=[("a", 4, 4)])
    assert "skipped the states of 1 tokens of a request, from 0 to 4" in taken(worker, "a")


def test_a_repeated_step_leaves_its_request_without_scores_and_says_so(worker):
    worker.step({"a": 4, "b": 4}, new=[("a", 4, 0), ("b", 4, 0)])
    worker.step({"a": 1, "b": 1})
    worker.computed["a"] -= 1
    worker.step({"a": 1, "b": 1})
    assert taken(worker, "a") == "vLLM 0.33.0 computed tokens 4 to 5 of a request again, which it had not preempted"
    assert len(taken(worker, "b")) == 3


def test_a_name_that_is_used_again_begins_again(worker):
    worker.step({"a": 4}, new=[("a", 4, 0)])
    worker.step({"a": 1})
    assert len(taken(worker, "a")) == 2
    worker.step({"a": 3}, new=[("a", 3, 0)], finished=["a"])
    assert len(taken(worker, "a")) == 1
    worker.step({"a": 1}, new=[("a", 3, 3)], finished=["a"])  # nothing of the one before stands for what it lacks
    assert "skipped the states of 1 tokens of a request, from 0 to 3" in taken(worker, "a")


def plant(monkeypatch, change):
    """Let vLLM compute other rows than those that its scheduler asked for."""

    def execute_model(self, scheduled):
        names, first, counts = self.rows(scheduled)
        names, first, counts, more = change(names, first, counts)
        return self.compute(scheduled, names, first, counts, **more)

    monkeypatch.setattr(FakeWorker, "execute_model", execute_model)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda n, f, c: (n, f, [c[0], c[1] + 1], {}), "scheduled 1 tokens of request b and has rows of 2"),
        (lambda n, f, c: (n[:1], f[:1], c[:1], {}), r"1 tokens of request b and has rows of 0 \(2 requests scheduled, 1 in the"),
        (lambda n, f, c: ([*n, "z"], [*f, 0], [*c, 1], {}), "scheduled 0 tokens of request z and has rows of 1"),
        (lambda n, f, c: ([n[0]] * 2, f, c, {}), "scheduled 1 tokens of request b and has rows of 0"),
        (lambda n, f, c: ([*n, n[1]], [*f, f[1]], [*c, c[1]], {}), r"1 tokens of .* \(2 requests scheduled, 3 in the batch\)"),
        (lambda n, f, c: (n, f, c, {"short": 3}), "scheduled 2 tokens and returned states of 1$"),
        (lambda n, f, c: (n, f, c, {"layers": [torch.zeros(1, 8)]}), "scheduled 2 tokens and returned states of 1 and 4"),
        (lambda n, f, c: (n, f, c, {"layers": [torch.zeros(5, 8)]}), "scheduled 2 tokens and returned states of 4 and 5"),
        (lambda n, f, c: (n, f, c, {"layers": [torch.zeros(4, 8)] * 2}), r"returned 2 layers' states instead of those of \(1,\)"),
    ],
    ids=[
        "a row more",
        "a request less",
        "a request more",
        "a request twice",
        "a request again",
        "all states short",
        "states missing",
        "states differ",
        "a layer more",
    ],
)
def test_rows_that_were_not_scheduled_end_the_engine(worker, monkeypatch, change, said):
    worker.prompts["z"] = 3
    worker.step({"a": 4, "b": 4}, new=[("a", 4, 0), ("b", 4, 0)])
    plant(monkeypatch, change)
    with pytest.raises(RuntimeError, match=said) as raised:
        worker.step({"a": 1, "b": 1})
    assert "vLLM 0.33.0" in str(raised.value)


def test_fewer_states_than_rows_end_the_engine(worker, monkeypatch):
    plant(monkeypatch, lambda n, f, c: (n, f, c, {"padded": 0, "layers": [torch.zeros(3, 8)]}))
    with pytest.raises(OutOfStep, match=r"^vLLM 0.33.0 scheduled 4 tokens and returned states of 3 and 4"):
        worker.step({"a": 4}, new=[("a", 4, 0)])


def test_a_total_of_other_tokens_ends_the_engine(worker):
    with pytest.raises(OutOfStep, match=r"^vLLM 0.33.0 scheduled 5 tokens and has rows 0 to 4"):
        worker.step({"a": 4}, new=[("a", 4, 0)], unnamed=1)


def test_drafted_tokens_end_the_engine(worker):
    worker.step({"a": 4}, new=[("a", 4, 0)])
    with pytest.raises(OutOfStep, match=r"^vLLM 0.33.0 scheduled drafted tokens of 1 requests, which are not always kept"):
        worker.step({"a": 2}, drafted=["a"])


def test_states_of_an_earlier_step_are_not_scored_again(worker, monkeypatch):
    """The state that a step left stands still when the next one leaves none of its own."""
    worker.step({"a": 4, "b": 4}, new=[("a", 4, 0), ("b", 4, 0)])
    monkeypatch.setattr(FakeWorker, "execute_model", lambda self, scheduled: None)
    with pytest.raises(OutOfStep, match=r"scheduled 1 tokens of request a and has rows of 4"):
        worker.step({"a": 1})


def test_a_place_that_was_never_written_is_a_fault(worker):
    """Whatever the steps look like: the gap itself is seen when the scores are asked for."""
    worker.keep(["a"], np.array([0, 0]), np.array([0, 3]), [torch.ones(2, 8)] * 2)
    assert taken(worker, "a") == "vLLM 0.33.0 computed no state at 2 of a sample's 4 places, the first of them 1"
    worker.keep(["b"], np.array([0, 0]), np.array([0, 1]), [torch.full((2, 8), torch.nan)] * 2)
    assert np.isnan(taken(worker, "b")).all()  # states that are not finite are no gap


def told(places, tokens, finish_reason):
    sample = Sample("a", 0, list(range(tokens)), finish_reason=finish_reason)
    sample.give(np.ones((places, 2), np.float32).tobytes(), 2)
    return sample


def test_tokens_are_counted_against_states():
    for places, tokens, reason in ((3, 3, "stop"), (4, 3, "length"), (9, 3, "stop"), (9, 3, None), (0, 0, "stop")):
        sample = told(places, tokens, reason)
        assert sample.fault is None and len(sample.scores) == places
    for places, tokens, reason in ((2, 3, "stop"), (5, 3, "length"), (0, 1, None)):
        sample = told(places, tokens, reason)
        assert sample.scores is None
        assert sample.fault == f"vLLM 0.33.0: its worker has scores of {places} of a sample's {tokens} tokens"
    sample.give("a reason", 2)
    assert (sample.fault, sample.scores) == ("a reason", None)
