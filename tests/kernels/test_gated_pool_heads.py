import pytest
import torch
from swift_rm_kernels import gated_pool, gated_pool_heads, gated_pool_reference, head_scores, pool_heads


def problem(heads=5, sizes=(3, 1, 7, 0, 4), widths=(6, 10), dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    layers = [torch.randn(sum(sizes), width, generator=generator).to(dtype) for width in widths]
    weight = torch.randn(heads, 2, sum(widths), generator=generator)
    bias = torch.randn(heads, 2, generator=generator)
    return layers, weight, bias, torch.tensor([0, *sizes]).cumsum(0)


@pytest.mark.parametrize("heads", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("masked", [False, True])
def test_each_head_gives_what_it_gives_alone_and_learns_what_it_learns_alone(heads, dtype, masked, poisoned):
    layers, weight, bias, offsets = problem(heads, dtype=dtype)
    mask = torch.rand(int(offsets[-1]), heads, generator=torch.Generator().manual_seed(1)) < 0.6 if masked else None
    weight.requires_grad_()
    bias.requires_grad_()
    rewards = gated_pool_heads(layers, weight, bias, offsets, mask=mask)
    pull = torch.randn(rewards.shape, generator=torch.Generator().manual_seed(2))
    rewards.backward(pull)
    for head in range(heads):
        w, b = weight.detach()[head].double().requires_grad_(), bias.detach()[head].double().requires_grad_()
        alone = gated_pool_reference(layers, w, b, offsets, mask=None if mask is None else mask[:, head])
        alone.backward(pull[:, head].double())
        assert torch.allclose(rewards[:, head].double(), alone, atol=2e-5)
        assert torch.allclose(weight.grad[head].double(), w.grad, atol=1e-4)
        assert torch.allclose(bias.grad[head].double(), b.grad, atol=1e-4)


def test_a_head_without_a_gate_is_a_plain_mean_and_its_gate_gets_no_gradient():
    layers, weight, bias, offsets = problem(3)
    weight.requires_grad_()
    rewards = gated_pool_heads(layers, weight, bias, offsets, gated=torch.tensor([True, False, True]))
    rewards.sum().backward()
    plain = gated_pool(layers, weight.detach()[1, 1:], bias[1, 1:], offsets)
    assert torch.allclose(rewards[:, 1], plain, atol=1e-5)
    assert torch.equal(weight.grad[1, 0], torch.zeros(16))
    assert weight.grad[0, 0].abs().max() > 0
    means = gated_pool_heads(layers, weight.detach()[:, 1:], bias[:, 1:], offsets)
    assert torch.allclose(means[:, 1], plain, atol=1e-5) and means.shape == (5, 3)


def test_gates_that_all_underflow_still_weigh():
    layers, weight, bias, offsets = problem(2)
    bias[:, 0] = -1000.0
    expected = torch.stack([gated_pool_reference(layers, weight[h], bias[h], offsets) for h in range(2)], 1)
    assert torch.allclose(gated_pool_heads(layers, weight, bias, offsets), expected, atol=1e-4)


@pytest.mark.parametrize("heads", [1, 3])
def test_states_that_ask_for_it_get_their_gradient(heads):
    layers, weight, bias, offsets = problem(heads)
    layers[1].requires_grad_()
    slow = layers[1].detach().clone().requires_grad_()
    gated_pool_heads(layers, weight, bias, offsets).square().sum().backward()
    for head in range(heads):
        gated_pool_reference([layers[0], slow], weight[head], bias[head], offsets).square().sum().backward()
    assert torch.allclose(layers[1].grad, slow.grad, atol=1e-4) and layers[0].grad is None


def test_inference_states_train_a_head():
    layers, weight, bias, offsets = problem(2)
    with torch.inference_mode():
        layers = [layer * 1 for layer in layers]
    weight.requires_grad_()
    gated_pool_heads(layers, weight, bias, offsets).sum().backward()
    assert weight.grad.abs().max() > 0


def test_gradients_flow_through_each_token_score():
    layers, weight, bias, offsets = problem(2)
    weight.requires_grad_()
    z, r = head_scores(layers, weight, bias, offsets)
    assert z.shape == r.shape == (15, 2)
    states = torch.cat(layers, 1)
    (gradient,) = torch.autograd.grad(z[:, 0].sum() + 2 * r[:, 1].sum(), weight)
    assert torch.allclose(gradient[0, 0], states.sum(0), atol=1e-4)
    assert torch.allclose(gradient[1, 1], 2 * states.sum(0), atol=1e-4)


def test_what_does_not_fit_is_refused_with_both_values():
    layers, weight, bias, offsets = problem(2)
    with pytest.raises(ValueError, match=r"for states 16 wide, got \[2, 2, 15\]"):
        gated_pool_heads(layers, weight[..., 1:], bias, offsets)
    with pytest.raises(ValueError, match=r"\[H, 2, D\]"):
        gated_pool_heads(layers, weight[0], bias, offsets)
    with pytest.raises(ValueError, match="offsets"):
        gated_pool_heads(layers, weight, bias, offsets[:-1])
    with pytest.raises(ValueError, match=r"mask must be bool \[T, H\] or \[T, 1\], \[15, 2\] here"):
        pool_heads(*head_scores(layers, weight, bias, offsets), offsets, torch.ones(15, 3, dtype=torch.bool))
