import itertools
import math

import pytest
import torch
from swift_rm_kernels import gated_pool_reference
from swift_rm_kernels.reference import pool_reference, token_scores_reference


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
