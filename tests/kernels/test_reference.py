import itertools
import math

import pytest
import torch
from swift_rm_kernels import gated_pool_reference
from swift_rm_kernels.reference import (
    add_scores_reference,
    gated_step_reference,
    new_running,
    pool_prefixes_reference,
    pool_reference,
    running_rewards,
    token_scores_reference,
)


def packed(sizes, width=6, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(sum(sizes), width, generator=generator, dtype=dtype)
    weight = torch.randn(2, width, generator=generator, dtype=dtype)
    bias = torch.randn(2, generator=generator, dtype=dtype)
    return states, weight, bias, torch.tensor([0, *sizes]).cumsum(0)


def test_equals_the_formula_written_out():
    states, weight, bias, offsets = packed([3, 1, 5])
    rewards = gated_pool_reference(states, weight, bias, offsets)
    for row, (start, end) in enumerate(itertools.pairwise(offsets.tolist())):
        top = bottom = 0.0
        for t in range(start, end):
            z = sum(float(weight[0, i] * states[t, i]) for i in range(6)) + float(bias[0])
            r = sum(float(weight[1, i] * states[t, i]) for i in range(6)) + float(bias[1])
            g = 1 / (1 + math.exp(-z))
            top, bottom = top + g * r, bottom + g
        assert float(rewards[row]) == pytest.approx(top / bottom, abs=1e-12)


def test_layers_in_a_list_equal_their_concatenation():
    states, weight, bias, offsets = packed([4, 2])
    parts = [states[:, :1], states[:, 1:4], states[:, 4:]]
    assert torch.allclose(gated_pool_reference(parts, weight, bias, offsets), gated_pool_reference(states, weight, bias, offsets))


def test_without_gate_it_is_the_plain_mean():
    states, weight, bias, offsets = packed([4, 2])
    rewards = gated_pool_reference(states, weight[1:], bias[1:], offsets)
    tokens = states @ weight[1] + bias[1]
    assert torch.allclose(rewards, torch.stack([tokens[:4].mean(), tokens[4:].mean()]))


def test_stays_finite_when_every_gate_underflows():
    z = torch.tensor([-300.0, -301.0, -4000.0])  # sigmoid is 0 in float32: the naive quotient is 0 / 0
    r = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    offsets = torch.tensor([0, 2, 3])
    rewards = pool_reference(z, r, offsets)
    e = math.exp(-1)
    assert rewards.tolist() == pytest.approx([(1 + 2 * e) / (1 + e), 3.0], abs=1e-6)
    rewards.sum().backward()
    assert torch.isfinite(r.grad).all()


def test_saturated_open_gates_give_the_mean():
    rewards = pool_reference(torch.tensor([500.0, 900.0]), torch.tensor([1.0, 3.0]), torch.tensor([0, 2]))
    assert float(rewards) == pytest.approx(2.0)


def test_empty_rows_and_fully_masked_rows_have_reward_zero_and_no_gradient():
    z = torch.zeros(4, requires_grad=True)
    r = torch.tensor([5.0, 6.0, 7.0, 8.0], requires_grad=True)
    mask = torch.tensor([True, False, False, False])
    rewards = pool_reference(z, r, torch.tensor([0, 2, 2, 4]), mask)
    assert rewards.tolist() == [5.0, 0.0, 0.0]
    rewards.sum().backward()
    assert r.grad.tolist() == [1.0, 0.0, 0.0, 0.0]
    assert z.grad.tolist() == [0.0, 0.0, 0.0, 0.0]


def test_empty_batch_returns_empty():
    _, weight, bias, _ = packed([1])
    rewards = gated_pool_reference(torch.zeros(0, 6, dtype=torch.float64), weight, bias, torch.tensor([0]))
    assert rewards.shape == (0,)


def test_a_nan_state_spoils_its_own_response_only():
    states, weight, bias, offsets = packed([2, 2])
    clean = gated_pool_reference(states, weight, bias, offsets)
    states[3, 0] = math.nan
    rewards = gated_pool_reference(states, weight, bias, offsets)
    assert torch.isnan(rewards[1])
    assert rewards[0] == clean[0]


def test_gradients_through_every_output():
    states, weight, bias, offsets = packed([3, 1, 2], width=4)
    for tensor in (states, weight, bias):
        tensor.requires_grad_(True)
    assert torch.autograd.gradcheck(
        lambda s, w, b: gated_pool_reference(s, w, b, offsets, return_tokens=True), (states, weight, bias)
    )


@pytest.mark.parametrize("offsets", [[0, 3], [1, 4], [0, 3, 2, 4], [0.0, 4.0]])
def test_offsets_that_do_not_fit_are_refused(offsets):
    states, weight, bias, _ = packed([4])
    with pytest.raises(ValueError, match="offsets must"):
        gated_pool_reference(states, weight, bias, torch.tensor(offsets))


def test_widths_that_do_not_fit_are_refused_with_both_values():
    states, weight, bias, _ = packed([4])
    with pytest.raises(ValueError, match="5 wide in all, but weight is 6 wide"):
        token_scores_reference([states[:, :5]], weight, bias)


def test_prefixes_are_the_rewards_of_beginnings():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([3, 1, 0, 7])
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), sizes.cumsum(0)])
    z, r = torch.randn(2, 11, generator=generator, dtype=torch.float64)
    z[4:7] = -300.0  # gates so much smaller than the later ones that their sums must not meet
    prefixes = pool_prefixes_reference(z, r, offsets)
    for start, end in zip(offsets.tolist(), offsets.tolist()[1:], strict=False):
        for stop in range(start + 1, end + 1):
            alone = pool_reference(z[start:stop], r[start:stop], torch.tensor([0, stop - start]))
            assert float(prefixes[stop - 1]) == pytest.approx(float(alone), rel=1e-9)
    last = offsets[1:][sizes > 0] - 1
    assert torch.allclose(prefixes[last], pool_reference(z, r, offsets)[sizes > 0])
    small = torch.randn(2, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: pool_prefixes_reference(x[0], x[1], torch.tensor([0, 2, 5])), small)


@pytest.mark.parametrize("gate", [True, False])
def test_token_by_token_it_is_the_same_as_all_at_once(gate):
    sizes = [5, 1, 3]
    states, weight, bias, offsets = packed(sizes)
    if not gate:
        weight, bias = weight[1:], bias[1:]
    running = new_running(3, dtype=torch.float64)
    assert running_rewards(running).isnan().all()
    for step in range(max(sizes)):
        active = torch.tensor([step < size for size in sizes])
        rows = torch.stack([states[start + min(step, size - 1)] for start, size in zip(offsets.tolist(), sizes, strict=False)])
        rows[~active] = math.nan  # whatever padding holds
        gated_step_reference([rows[:, :2], rows[:, 2:]], weight, bias, running, active)
    assert torch.allclose(running_rewards(running), gated_pool_reference(states, weight, bias, offsets), rtol=1e-12)
    without = new_running(3, dtype=torch.float64)
    for start in range(3):
        gated_step_reference([states[start : start + 1].expand(3, -1)], weight, bias, without)
    expected = gated_pool_reference(states[:3], weight, bias, torch.tensor([0, 3]))
    assert torch.allclose(running_rewards(without), expected.expand(3), rtol=1e-12)


@pytest.mark.parametrize("z", [[-300.0, -301.0, -4000.0], [-4000.0, -300.0, -301.0], [-5e4, 5e4, -5e4], [900.0, 500.0, 900.0]])
def test_token_by_token_gates_may_underflow_or_saturate(z):
    z, r = torch.tensor(z), torch.tensor([1.0, 2.0, 3.0])
    running = new_running(1)
    for scores in torch.stack([z, r], dim=1):
        add_scores_reference(running, scores[None])
        assert running.isfinite().all()
    expected = pool_reference(z.double(), r.double(), torch.tensor([0, 3]))
    assert running_rewards(running).tolist() == pytest.approx(expected.tolist(), abs=1e-6)


@pytest.mark.parametrize("broken", [[math.nan, 0.0], [0.0, math.nan], [0.0, math.inf]])
def test_token_by_token_a_row_that_breaks_stays_broken_and_alone(broken):
    running, clean = new_running(2), new_running(2)
    for step in range(3):
        scores = torch.tensor([[0.5, 1.0 + step], [0.5, 2.0 + step]])
        add_scores_reference(clean, scores)
        if step == 1:
            scores[0] = torch.tensor(broken)
        add_scores_reference(running, scores)
    rewards = running_rewards(running)
    assert not rewards[0].isfinite()
    assert rewards[1] == running_rewards(clean)[1]


def test_token_by_token_rows_that_are_not_active_stay_as_they_are():
    running = new_running(2)
    add_scores_reference(running, torch.tensor([[0.0, 1.0], [0.0, 2.0]]))
    before = running.clone()
    add_scores_reference(running, torch.tensor([[math.nan, math.inf], [1.0, 5.0]]), torch.tensor([False, True]))
    assert running[0].tolist() == before[0].tolist()
    assert running[1].tolist() != before[1].tolist()
    add_scores_reference(running, torch.full((2, 2), math.nan), torch.tensor([False, False]))
    assert running[0].tolist() == before[0].tolist()
