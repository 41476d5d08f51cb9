"""Every implementation of gated_pool equals the reference: within plain torch's own error of a float64 truth, on every edge."""

import math
import mmap

import pytest
import torch
from swift_rm_kernels import gated_pool, gated_pool_reference
from swift_rm_kernels.gated_pool_op import gated_pool_op, score_gradient, weight_gradient

from tests.kernels.implementations import DEVICE, needs_triton
from tests.kernels.implementations import POOL_IMPLS as IMPLS

poisoned = pytest.mark.usefixtures("poisoned")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# widths of the layers, tokens of the responses, rows of the weight, a mask, the bias of the gate
CASES = {
    "ragged": ((96, 96, 96), (3, 0, 40, 1, 9), 2, False, 0.3),
    "one token of one response": ((64,), (1,), 2, False, 0.3),
    "widths that no block divides": ((5, 300, 17), (6, 2), 2, False, 0.3),
    "one column": ((1,), (4, 3), 2, False, 0.3),
    "no gate": ((33, 31), (5, 0, 2), 1, False, 0.3),
    "masked, one response wholly": ((16, 16), (4, 3, 5), 2, True, 0.3),
    "masked without a gate": ((16,), (4, 3, 5), 1, True, 0.3),
    "closed gates that underflow": ((24,), (7, 2), 2, False, -400.0),
    "open gates": ((24,), (7, 2), 2, False, 400.0),
    "empty batch": ((16, 8), (), 2, False, 0.3),
    "only empty responses": ((16, 8), (0, 0), 2, False, 0.3),
    "longer than a block of tokens": ((4,), (40, 5, 16), 2, False, 0.3),
}


def packed(name, dtype=torch.float32, seed=0):
    widths, sizes, rows, masked, bias = CASES[name]
    g = torch.Generator().manual_seed(seed)
    layers = [torch.randn(sum(sizes), width, generator=g).to(DEVICE, dtype) for width in widths]
    weight = (torch.randn(rows, sum(widths), generator=g) / math.sqrt(sum(widths))).to(DEVICE)
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    mask = None
    if masked:
        mask = (torch.rand(sum(sizes), generator=g) > 0.3).to(DEVICE)
        mask[offsets[1] : offsets[2]] = False
    return layers, weight, torch.tensor([bias, 0.1][-rows:], device=DEVICE), offsets.to(DEVICE), mask


def outputs_and_gradients(run, layers, weight, bias, offsets, mask):
    """Rewards, z, r, and the gradients of a mixture of all three to every input."""
    inputs = [tensor.detach().clone().requires_grad_() for tensor in (*layers, weight, bias)]
    rewards, z, r = run(inputs[:-2], inputs[-2], inputs[-1], offsets, mask=mask, return_tokens=True)
    mixture = (
        (rewards.double().sin().sum() + (z.double() * 0.01 * r.double()).sum()) if weight.shape[0] == 2 else rewards.sin().sum()
    )
    gradients = torch.autograd.grad(mixture, inputs, allow_unused=True)
    gradients = [torch.zeros_like(x) if g is None else g for g, x in zip(gradients, inputs, strict=True)]
    return [tensor.detach().double() for tensor in (rewards, z, r, *gradients)]


@poisoned
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("impl", IMPLS)
def test_errors_are_no_larger_than_plain_torchs(impl, name, dtype, monkeypatch):
    if impl == "triton":
        monkeypatch.setattr("swift_rm_kernels.gated_pool_triton.POOL_BLOCK", 16)
    layers, weight, bias, offsets, mask = packed(name, dtype)
    truth = outputs_and_gradients(
        gated_pool_reference, [x.double() for x in layers], weight.double(), bias.double(), offsets, mask
    )
    plain = outputs_and_gradients(gated_pool_reference, layers, weight.to(dtype), bias.to(dtype), offsets, mask)
    ours = outputs_and_gradients(lambda *a, **k: gated_pool(*a, **k, impl=impl), layers, weight, bias, offsets, mask)
    for which, (t, p, o) in enumerate(zip(truth, plain, ours, strict=True)):
        assert o.shape == t.shape
        if t.numel():
            epsilon = 4e-6 * max(1.0, float(t.abs().max()))
            if 3 <= which < 3 + len(layers):
                epsilon += float(t.abs().max()) * torch.finfo(dtype).eps  # a gradient to the states has their dtype
            assert float((o - t).abs().max()) <= float((p - t).abs().max()) + epsilon, which


@poisoned
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("output", [0, 1, 2])
def test_gradients_flow_through_each_output_alone(impl, output):
    layers, weight, bias, offsets, _ = packed("ragged")
    weight.requires_grad_(), bias.requires_grad_()
    found, expected = (
        torch.autograd.grad(
            run(layers, weight, bias, offsets, return_tokens=True)[output].cos().sum(), (weight, bias), allow_unused=True
        )
        for run in (lambda *a, **k: gated_pool(*a, **k, impl=impl), gated_pool_reference)
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert found[0].abs().max() > 1e-3


@poisoned
@pytest.mark.parametrize("impl", IMPLS)
def test_a_stack_a_list_and_views_of_any_stride_are_the_same(impl):
    g = torch.Generator().manual_seed(3)
    states = torch.randn(20, 48, generator=g).to(DEVICE)
    weight, bias, offsets = torch.randn(2, 48, generator=g).to(DEVICE), torch.zeros(2, device=DEVICE), torch.tensor([0, 7, 20])
    expected = gated_pool_reference(states, weight, bias, offsets)
    room = torch.randn(20 * 3 + 1, 101, device=DEVICE)[1::3, 2:50]  # every third row, from an odd address
    room.copy_(states)
    for given in (
        states,
        [states],
        list(states.split(16, 1)),
        list(states.split([3, 44, 1], 1)),
        room,
        [room[:, :32], room[:, 32:]],
    ):
        torch.testing.assert_close(gated_pool(given, weight, bias, offsets, impl=impl), expected, rtol=1e-5, atol=1e-5)
    same = states[:1].expand(20, -1)  # stride 0
    torch.testing.assert_close(
        gated_pool(same, weight, bias, offsets, impl=impl), gated_pool_reference(same, weight, bias, offsets)
    )


@pytest.mark.parametrize("impl", IMPLS)
def test_every_other_argument_may_have_gaps_too(impl):
    layers, weight, bias, offsets, mask = packed("masked, one response wholly")
    expected = gated_pool_reference(layers, weight, bias, offsets, mask=mask)
    wide = torch.stack([weight.T, weight.T], dim=2)  # strides 4 and 2
    given = wide[..., 0].T.requires_grad_()
    doubled = [torch.stack([tensor, tensor], dim=-1)[..., 0] for tensor in (bias, offsets, mask)]
    rewards = gated_pool(layers, given, doubled[0], doubled[1].int(), mask=doubled[2], impl=impl)
    torch.testing.assert_close(rewards, expected)
    found = torch.autograd.grad(rewards.sum(), given)[0]  # the gradient of a sum has stride 0
    weight.requires_grad_()
    reference = torch.autograd.grad(gated_pool_reference(layers, weight, bias, offsets, mask=mask).sum(), weight)[0]
    torch.testing.assert_close(found, reference, rtol=1e-4, atol=1e-5)


@poisoned
@pytest.mark.parametrize("impl", IMPLS)
def test_a_nan_spoils_its_own_response_only(impl):
    layers, weight, bias, offsets, _ = packed("ragged")
    clean = gated_pool(layers, weight, bias, offsets, impl=impl)
    layers[1][4, 7] = math.nan
    spoilt = gated_pool(layers, weight, bias, offsets, impl=impl)
    assert torch.isnan(spoilt).nonzero().flatten().tolist() == [2]
    assert torch.equal(spoilt[~torch.isnan(spoilt)], clean[~torch.isnan(spoilt)])


@pytest.mark.parametrize("impl", IMPLS)
def test_addresses_are_in_64_bits(impl):
    apart = 2**31 + 64  # elements between two tokens: pages that nobody touches take no memory
    memory = torch.frombuffer(mmap.mmap(-1, 2 * (apart + 32)), dtype=torch.bfloat16)
    states = memory.to(DEVICE).as_strided((2, 32), (apart, 1))
    states[1] = 1.0
    weight, bias, offsets = torch.ones(2, 32, device=DEVICE), torch.zeros(2, device=DEVICE), torch.tensor([0, 1, 2])
    weight.requires_grad_()
    rewards = gated_pool(states, weight, bias, offsets, impl=impl)
    assert rewards.tolist() == [0.0, 32.0]
    assert torch.autograd.grad(rewards[1], weight)[0][1].tolist() == [1.0] * 32


def test_states_get_a_gradient_only_if_they_ask():
    layers, weight, bias, offsets, _ = packed("ragged")
    layers[1].requires_grad_()
    gated_pool(layers, weight, bias, offsets).sum().backward()  # the head is frozen here
    assert [layer.grad is not None for layer in layers] == [False, True, False]


def test_the_gradient_is_exact_in_float64():
    layers, weight, bias, offsets, mask = packed("masked, one response wholly", torch.float64)
    inputs = [tensor.double().requires_grad_() for tensor in (*layers, weight, bias)]
    for which in (None, mask):
        assert torch.autograd.gradcheck(
            lambda a, b, w, c, which=which: gated_pool([a, b], w, c, offsets, mask=which, return_tokens=True), inputs
        )


def test_a_head_in_float64_is_read_in_float64_by_plain_torch():
    layers, weight, bias, offsets, _ = packed("ragged")
    double = gated_pool(layers, weight.double(), bias.double(), offsets)
    torch.testing.assert_close(
        double, gated_pool_reference([x.double() for x in layers], weight.double(), bias.double(), offsets)
    )
    with pytest.raises(ValueError, match=r"impl='triton' reads .* got torch.float64; take impl='torch'"):
        gated_pool(layers, weight.double(), bias.double(), offsets, impl="triton")


@pytest.mark.parametrize("impl", IMPLS)
def test_torch_accepts_the_operations(impl):
    layers, weight, bias, offsets, mask = packed("masked, one response wholly")
    weight.requires_grad_(), layers[0].requires_grad_()
    torch.library.opcheck(gated_pool_op, (layers, weight, bias, offsets, None, impl))
    torch.library.opcheck(gated_pool_op, (layers, weight, bias, offsets, mask, impl))
    rewards, scores = (tensor.detach() for tensor in gated_pool_op(layers, weight, bias, offsets, mask, impl))
    torch.library.opcheck(score_gradient, (scores, offsets, mask, rewards, torch.ones_like(rewards), impl))
    torch.library.opcheck(weight_gradient, ([layer.detach() for layer in layers], scores, impl))


def test_tokens_that_are_not_known_before_they_are_counted_compile_too():
    layers, weight, bias, *_ = packed("ragged")

    def kept(states, keep):
        return gated_pool(states[keep], weight[:, :96], bias, torch.tensor([0, 30]))

    keep = torch.arange(53, device=DEVICE) < 30
    compiled = torch.compile(kept, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        torch.testing.assert_close(compiled(layers[0], keep), kept(layers[0], keep))


@pytest.mark.parametrize("impl", IMPLS)
def test_neither_autocast_nor_the_default_dtype_changes_a_reward_or_a_gradient(impl):
    layers, weight, bias, offsets, _ = packed("ragged")
    weight.requires_grad_()

    def rewards_and_gradient():
        rewards = gated_pool(layers, weight, bias, offsets, impl=impl)
        return rewards.detach(), torch.autograd.grad(rewards.sum(), weight)[0]

    expected = rewards_and_gradient()
    for dtype in (torch.bfloat16, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            with torch.autocast(DEVICE, torch.bfloat16):
                found = rewards_and_gradient()
        finally:
            torch.set_default_dtype(torch.float32)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("impl", IMPLS)
def test_a_head_learns_from_states_of_inference_mode(impl):
    layers, weight, bias, offsets, _ = packed("ragged")
    with torch.inference_mode():
        inferred = [layer.clone() for layer in layers]
    weight.requires_grad_()
    rewards = [gated_pool(states, weight, bias, offsets, impl=impl).sum() for states in (inferred, layers)]
    found, expected = (torch.autograd.grad(one, weight)[0] for one in rewards)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("impl", IMPLS)
def test_states_without_columns_have_the_bias_for_a_reward(impl):
    weight, bias = torch.zeros(2, 0, device=DEVICE, requires_grad=True), torch.tensor([0.0, 3.0], device=DEVICE)
    rewards = gated_pool(torch.zeros(4, 0, device=DEVICE), weight, bias, torch.tensor([0, 4]), impl=impl)
    assert rewards.tolist() == [3.0]
    assert torch.autograd.grad(rewards.sum(), weight)[0].shape == (2, 0)


@needs_triton
def test_states_are_loaded_16_bytes_at_a_time_only_where_addresses_and_strides_allow():
    from swift_rm_kernels.gated_pool_triton import _alignment

    states = torch.zeros(9, 64, dtype=torch.bfloat16)
    assert _alignment([states]) == {"VECTOR": 8, "STEP": 64}
    assert _alignment([states.float()])["VECTOR"] == 4
    for odd in (states[:, 1:33], torch.zeros(9, 65, dtype=torch.bfloat16)[:, :64], states[:, :24]):
        assert _alignment([states, odd])["VECTOR"] == 1
    assert _alignment([torch.zeros(2, 4096)])["STEP"] == 1024


def test_it_compiles_without_a_break():
    layers, weight, bias, offsets, _ = packed("ragged")
    weight.requires_grad_()

    def loss(weight):
        return gated_pool(layers, weight, bias, offsets).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(weight), loss(weight))
    torch.testing.assert_close(torch.autograd.grad(compiled(weight), weight), torch.autograd.grad(loss(weight), weight))


def test_plain_torch_makes_nothing_larger_than_a_block():
    from swift_rm_kernels import gated_pool_torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and not out._is_view():
                self.largest = max(self.largest, out.nbytes)
            return out

    states = torch.zeros(4096, 2048, dtype=torch.bfloat16)
    with Largest() as seen:
        gated_pool_torch.token_scores([states], torch.zeros(2, 2048), torch.zeros(2))
        gated_pool_torch.weight_gradient([states], torch.zeros(4096, 2))
    assert 0 < seen.largest <= gated_pool_torch.BLOCK_BYTES < states.nbytes / 8
