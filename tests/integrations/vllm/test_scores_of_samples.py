"""The rows of a step, the scores that the worker keeps of them, and the rewards of samples that they make; no vLLM needed."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from swift_rm.integrations.vllm.worker.kept_scores import KeptScores
from swift_rm.integrations.vllm.worker.sample import Sample, sample_rewards, score_width
from swift_rm.integrations.vllm.worker.step_rows import pick, rows_of, rows_of_v2
from tests.integrations.vllm.random_reward_model import random_model


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
