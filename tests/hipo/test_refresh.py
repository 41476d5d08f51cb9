import math
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file, save_file

from swift_rm import SwiftConfig, SwiftRewardModel
from swift_rm.hipo.rollouts.refresh import FILE, Refresh, _packed

WIDTH = 6


def reward_model(seed=0):
    torch.manual_seed(seed)
    rm = SwiftRewardModel(SwiftConfig(WIDTH, (0,)))
    torch.nn.init.normal_(rm.head.weight, std=0.003)
    return rm


def responses(count, seed, direction=None):
    """Return packed states whose mean along ``direction`` tells the label, features of unlike scales."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (count,), generator=generator)
    labels[:2] = torch.tensor([0, 1])
    sizes = torch.randint(2, 7, (count,), generator=generator)
    states = torch.randn(int(sizes.sum()), WIDTH, generator=generator)
    direction = torch.eye(WIDTH)[3] if direction is None else direction
    states += (2 * labels - 1).repeat_interleave(sizes)[:, None] * direction
    states = states * torch.tensor([100.0, 1, 1, 0.01, 1, 1]) + 5
    return states, torch.cat([torch.zeros(1, dtype=torch.long), sizes.cumsum(0)]), labels.tolist()


def accuracy(rm, batch):
    states, offsets, labels = batch
    return ((rm(states, offsets) > 0).long() == torch.tensor(labels)).float().mean().item()


def test_the_head_follows_the_states_and_the_calibration_the_head():
    rm, test = reward_model(), responses(400, 99)
    before = accuracy(rm, test)
    refresh = Refresh(lr=0.03, pull=0.01)
    losses = [refresh.learn(rm, *responses(16, step)) for step in range(30)]
    assert before < 0.65
    assert accuracy(rm, test) > 0.9
    assert losses[-1]["swift/refresh_loss"] < losses[0]["swift/refresh_loss"] / 2
    assert losses[0]["swift/labelled"] == 16
    right = torch.tensor(test[2]).float().numpy()
    assert abs(rm.probability(rm(*test[:2]).detach().numpy()) - right).mean() < 0.2
    assert rm.config.calibration["method"] == "platt"
    assert refresh.updates == 30


def test_the_first_step_is_that_of_the_formula():
    rm, slow = reward_model(), reward_model()
    states, offsets, labels = responses(8, 0)
    Refresh(lr=0.01, steps=1, pull=0.0).learn(rm, states, offsets, labels)
    mean, scale = states.double().mean(0), states.double().std(0, correction=0)
    weight = (slow.head.weight.detach().double() * scale).requires_grad_()
    bias = (slow.head.bias.detach().double() + slow.head.weight.detach().double() @ mean).requires_grad_()
    rewards = []
    for start, end in pairwise(offsets):
        z, r = ((states[start:end].double() - mean) / scale @ weight.T + bias).unbind(1)
        rewards.append((z.sigmoid() * r).sum() / z.sigmoid().sum())
    loss = torch.nn.functional.binary_cross_entropy_with_logits(torch.stack(rewards), torch.tensor(labels).double())
    loss.backward()
    moved = weight - 0.01 * weight.grad / (weight.grad.abs() + 1e-8)  # Adam's first step has the length of its rate
    assert torch.allclose(rm.head.weight.double(), moved / scale, rtol=1e-3, atol=1e-6)


def test_the_pull_keeps_a_head_near_its_start():
    moved = []
    for pull in (0.0, 10.0):
        rm = reward_model()
        refresh = Refresh(lr=0.03, pull=pull)
        for step in range(10):
            refresh.learn(rm, *responses(8, step))
        moved.append((rm.head.weight - reward_model().head.weight).norm().item())
    assert moved[1] < moved[0] / 4


def test_labels_of_one_kind_do_not_move_the_calibration():
    rm = reward_model().with_config(calibration={"method": "platt", "slope": 2.0, "offset": 1.0, "rewards": [],
                                                 "probabilities": []})  # fmt: skip
    states, offsets, _ = responses(60, 0)
    Refresh(calibrate=50).learn(rm, states, offsets, [1] * 60)
    assert rm.config.calibration["slope"] == 2.0


def test_responses_that_say_nothing_are_left_out():
    rm, refresh = reward_model(), Refresh(least=3)
    states, offsets, labels = responses(4, 0)
    states[0] = math.nan
    told = refresh.learn(rm, states, offsets, [labels[0], labels[1], math.nan, labels[3]])
    assert told == {"swift/labelled": 2.0}  # and two are too few for a step
    assert torch.equal(rm.head.weight, reward_model().head.weight)
    assert refresh.learn(rm, states[:0], offsets[:1], []) == {"swift/labelled": 0.0}
    assert refresh.updates == 1


def test_the_replay_is_bounded():
    rm, refresh = reward_model(), Refresh(replay=20)
    for step in range(5):
        refresh.learn(rm, *responses(8, step))
    states, _, labels = responses(8, 4)
    assert len(refresh._held) == len(refresh._said) == 20
    assert torch.equal(refresh._held[-1][0], states[-len(refresh._held[-1][0]) :])
    assert [label for _, label in list(refresh._held)[-8:]] == labels


@pytest.mark.parametrize("stop", [0, 1, 4])  # before the first step, and after it
def test_a_resumed_run_equals_one_that_was_not_stopped(tmp_path, stop):
    batches = [responses(6, step) for step in range(8)]
    whole, refresh = reward_model(), Refresh(batch=16, calibrate=20)
    for batch in batches:
        refresh.learn(whole, *batch)
    first, refresh = reward_model(), Refresh(batch=16, calibrate=20)
    for batch in batches[:stop]:
        refresh.learn(first, *batch)
    refresh.save(tmp_path, first)
    again, refresh = reward_model(seed=5 if stop else 0), Refresh(batch=16, calibrate=20)
    refresh.load(tmp_path, again)
    assert refresh.updates == stop
    for batch in batches[stop:]:
        refresh.learn(again, *batch)
    assert torch.equal(again.head.weight, whole.head.weight)
    assert torch.equal(again.head.bias, whole.head.bias)
    assert again.config == whole.config
    assert whole.config.calibration is not None


def test_what_cannot_be_resumed_is_said(tmp_path):
    rm, refresh = reward_model(), Refresh(lr=0.01)
    with pytest.raises(ValueError, match="did not refresh its reward model, so resume it without"):
        refresh.load(tmp_path, rm)
    refresh.learn(rm, *responses(8, 0))
    refresh.save(tmp_path, rm)
    with pytest.raises(ValueError, match=r"made with lr=0.01 of the refreshing, not 0.02"):
        Refresh(lr=0.02).load(tmp_path, rm)
    other = SwiftRewardModel(SwiftConfig(WIDTH + 1, (0,)))
    with pytest.raises(ValueError, match="does not fit"):
        Refresh(lr=0.01).load(tmp_path, other)
    tensors = load_file(tmp_path / FILE)
    save_file(tensors, tmp_path / FILE)
    with pytest.raises(ValueError, match="not a readable state"):
        Refresh(lr=0.01).load(tmp_path, rm)
    (tmp_path / FILE).write_bytes(b"junk")
    with pytest.raises(ValueError, match="not a readable state"):
        Refresh(lr=0.01).load(tmp_path, rm)


def test_states_of_a_checkpoint_and_new_ones_may_be_on_two_devices():
    here, there = torch.ones(2, 3), torch.zeros(1, 3, device="meta")
    states, offsets = _packed([here, there], torch.empty(0, dtype=torch.float64, device="meta"))
    assert (states.device.type, states.dtype, states.shape) == ("meta", torch.float64, (3, 3))
    assert offsets.shape == (3,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"share": 0.0}, "share must be above 0"), ({"lr": 0.0}, "lr > 0"), ({"steps": 0}, "steps must be at least 1, got 0")],
)
def test_settings_that_are_none_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Refresh(**settings)
