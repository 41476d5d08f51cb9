"""gated_step, token by token, equals its reference and, in the end, gated_pool; on a GPU it waits for nothing."""

import math

import pytest
import torch
from swift_rm_kernels import gated_pool_reference, gated_step, gated_step_reference, new_running, running_rewards
from swift_rm_kernels.gated_step import gated_step_op

from tests.kernels.implementations import DEVICE
from tests.kernels.implementations import STEP_IMPLS as IMPLS

poisoned = pytest.mark.usefixtures("poisoned")
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]

CASES = {  # widths of the layers, rows, rows of the weight
    "as a decoder": ((96,) * 5, 16, 2),
    "more rows than a block, wider than a block": ((600, 600), 33, 2),
    "one row": ((32, 32), 1, 2),
    "one layer": ((64,), 4, 2),
    "no gate": ((24, 24, 24), 5, 1),
    "layers of different widths": ((8, 24, 16), 3, 2),
    "widths without a common divisor": ((5, 7), 3, 2),
    "too many pieces of one width": ((300, 301), 3, 2),
}


def head(name):
    widths, _, heads = CASES[name]
    g = torch.Generator().manual_seed(1)
    weight = torch.randn(heads, sum(widths), generator=g) / math.sqrt(sum(widths))
    return weight.to(DEVICE), torch.randn(heads, generator=g).to(DEVICE)


def steps(name, dtype, count=6):
    """Yield states and active rows; those that are not active hold NaN."""
    widths, rows, _ = CASES[name]
    g = torch.Generator().manual_seed(2)
    for _ in range(count):
        active = torch.rand(rows, generator=g) > 0.4
        layers = [torch.randn(rows, 1, width, generator=g) for width in widths]
        for layer in layers:
            layer[~active] = math.nan
        yield [layer.to(DEVICE, dtype) for layer in layers], active.to(DEVICE)


@poisoned
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("impl", IMPLS)
def test_every_step_equals_the_reference(impl, name, dtype):
    weight, bias = head(name)
    rows = CASES[name][1]
    truth, plain, ours = (new_running(rows, DEVICE, kind) for kind in (torch.float64, dtype, torch.float32))
    scores = torch.full((rows, len(bias)), 7.0, device=DEVICE)
    for layers, active in steps(name, dtype):
        before, expected = scores.clone(), scores.double()
        flat = [layer[:, 0] for layer in layers]
        gated_step_reference([x.double() for x in flat], weight.double(), bias.double(), truth, active, expected)
        gated_step_reference(flat, weight.to(dtype), bias.to(dtype), plain, active)
        gated_step(layers, weight, bias, ours, active, scores=scores, impl=impl)
        torch.testing.assert_close(scores.double(), expected, rtol=1e-5, atol=2e-6)
        assert torch.equal(scores[~active], before[~active]), "rows that are not active keep what they had"
        begun = truth[:, 2] > 0
        assert torch.equal(ours[~begun], new_running(int((~begun).sum()), DEVICE))
        error = (ours[begun].double() - truth[begun]).abs().max() if begun.any() else 0.0
        assert error <= (plain[begun].double() - truth[begun]).abs().max() + 1e-5 if begun.any() else True


@pytest.mark.parametrize("impl", ["reference", *IMPLS])
def test_the_steps_of_a_response_give_the_pools_reward(impl):
    g = torch.Generator().manual_seed(0)
    states = torch.randn(3, 11, 48, generator=g).to(DEVICE)  # rows, tokens, D
    weight, bias = torch.randn(2, 48, generator=g).to(DEVICE), torch.randn(2, generator=g).to(DEVICE)
    lengths = torch.tensor([11, 1, 6], device=DEVICE)
    running = new_running(3, DEVICE)
    for t in range(11):
        gated_step(list(states[:, t].split(16, 1)), weight, bias, running, t < lengths, impl=impl)
    packed = torch.cat([states[i, :n] for i, n in enumerate(lengths.tolist())])
    expected = gated_pool_reference(packed, weight, bias, torch.tensor([0, 11, 12, 18]))
    torch.testing.assert_close(running_rewards(running), expected, rtol=1e-5, atol=1e-5)


@poisoned
@pytest.mark.parametrize("impl", IMPLS)
def test_active_may_be_left_out_and_there_may_be_no_row_at_all(impl):
    weight, bias = head("as a decoder")
    (layers, _), *_ = steps("as a decoder", torch.float32)
    layers = [layer.nan_to_num() for layer in layers]
    one, other = new_running(16, DEVICE), new_running(16, DEVICE)
    gated_step(layers, weight, bias, one, impl=impl)
    gated_step(layers, weight, bias, other, torch.ones(16, dtype=torch.bool, device=DEVICE), impl=impl)
    assert torch.equal(one, other) and torch.isfinite(one).all()
    gated_step([layer[:0] for layer in layers], weight, bias, new_running(0, DEVICE), impl=impl)


@poisoned
@pytest.mark.parametrize("impl", IMPLS)
def test_gates_that_all_underflow_still_weigh_and_infinite_ones_stay_finite(impl):
    running = new_running(2, DEVICE)
    for value in (-300.0, -4000.0, -301.0):
        states = torch.tensor([[value, value], [-value * 1e30, 1.0]], device=DEVICE)
        gated_step([states], torch.eye(2, device=DEVICE), torch.zeros(2, device=DEVICE), running, impl=impl)
    e = math.exp(-1)
    assert running_rewards(running).tolist() == pytest.approx([(-300 - 301 * e) / (1 + e), 1.0], rel=1e-5)


@pytest.mark.parametrize("impl", ["reference", *IMPLS])
def test_a_gate_that_is_wholly_shut_counts_for_nothing(impl):
    running, weight = new_running(1, DEVICE), torch.tensor([[0.0], [1.0]], device=DEVICE)
    for reward, gate in ((5.0, -math.inf), (3.0, 0.0)):
        bias = torch.tensor([gate, 0.0], device=DEVICE)
        gated_step([torch.full((1, 1), reward, device=DEVICE)], weight, bias, running, impl=impl)
        if gate < 0:
            assert running.tolist() == [[-math.inf, 0.0, 0.0]]
    assert running_rewards(running).tolist() == [3.0]


@pytest.mark.parametrize("impl", IMPLS)
def test_neither_autocast_nor_the_default_dtype_changes_a_reward(impl):
    weight, bias = head("as a decoder")
    (layers, active), *_ = steps("as a decoder", torch.float32)
    expected, found = new_running(16, DEVICE), new_running(16, DEVICE)
    gated_step(layers, weight, bias, expected, active, impl=impl)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.autocast(DEVICE, torch.bfloat16):
            gated_step(layers, weight, bias, found, active, impl=impl)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(expected, found)


@poisoned
@pytest.mark.parametrize("impl", IMPLS)
def test_a_nan_spoils_its_own_row_only(impl):
    weight, bias = head("one layer")
    states = torch.randn(4, 64, device=DEVICE)
    states[2, 5] = math.nan
    running = new_running(4, DEVICE)
    gated_step([states], weight, bias, running, impl=impl)
    assert torch.isnan(running_rewards(running)).tolist() == [False, False, True, False]


@pytest.mark.parametrize("impl", IMPLS)
def test_last_states_of_a_prompt_are_read_in_place(impl):
    weight, bias = head("as a decoder")
    prompts = [torch.randn(16, 7, 96, device=DEVICE) for _ in range(5)]
    one, other = new_running(16, DEVICE), new_running(16, DEVICE)
    gated_step([prompt[:, -1:] for prompt in prompts], weight, bias, one, impl=impl)
    gated_step([prompt[:, -1].contiguous() for prompt in prompts], weight, bias, other, impl=impl)
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_torch_accepts_the_operation(impl):
    weight, bias = head("no gate")
    (layers, active), *_ = steps("no gate", torch.float32)
    layers = [layer.nan_to_num() for layer in layers]
    scores = torch.zeros(5, 1, device=DEVICE)
    torch.library.opcheck(gated_step_op, (layers, weight, bias, new_running(5, DEVICE), active, scores, impl))
    torch.library.opcheck(gated_step_op, (layers, weight, bias, new_running(5, DEVICE), None, None, impl))


def test_it_compiles_without_a_break_and_changes_what_it_was_given():
    weight, bias = head("as a decoder")
    (layers, active), *_ = steps("as a decoder", torch.float32)

    def step(running):
        gated_step(layers, weight, bias, running, active)
        return running_rewards(running)

    one, other = new_running(16, DEVICE), new_running(16, DEVICE)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(one), step(other), equal_nan=True)
    assert torch.equal(one, other) and (one[:, 2] > 0).any()


def good():
    return {
        "states": [torch.zeros(4, 1, 3), torch.zeros(4, 1, 5)],
        "weight": torch.zeros(2, 8),
        "bias": torch.zeros(2),
        "running": new_running(4),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"states": [torch.zeros(4, 2, 8)]}, r"one token a row, \[rows, d\] or \[rows, 1, d\], got \(4, 2, 8\)"),
        ({"states": [torch.zeros(4, 1, 3), torch.zeros(3, 1, 5)]}, r"states\[0\] is \(4, 1, 3\), states\[1\] \(3, 1, 5\)"),
        ({"weight": torch.zeros(2, 9)}, "8 wide in all, but weight is 9 wide"),
        ({"weight": torch.zeros(2, 8).half(), "bias": torch.zeros(2).half()}, "weight must be float32 .* got torch.float16"),
        ({"running": new_running(3)}, r"running must be a contiguous torch.float32 tensor \[4, 3\], got \[3, 3\]"),
        ({"running": new_running(4, dtype=torch.float64)}, r"running .* of torch.float64"),
        ({"running": torch.zeros(3, 4).T}, r"running .* strides \(1, 4\)"),
        ({"running": new_running(4, "meta")}, "running must be on the device of the states, cpu, got meta"),
        ({"active": torch.ones(4)}, r"active must be a contiguous torch.bool tensor \[4\], got \[4\] of torch.float32"),
        ({"scores": torch.zeros(4, 3)}, r"scores must be a contiguous torch.float32 tensor \[4, 2\], got \[4, 3\]"),
        ({"impl": "numba"}, "impl of gated_step must be one of .* got 'numba'"),
    ],
)
def test_bad_arguments_are_refused_and_nothing_changes(change, message):
    given = good() | change
    before = given["running"].clone()
    with pytest.raises(ValueError, match=message):
        gated_step(**given)
    assert given["running"].device.type == "meta" or torch.equal(before, given["running"])


@pytest.mark.parametrize("rows", [1, 16, 40])
class TestOnAGpu:
    pytestmark = gpu

    def test_a_captured_graph_does_what_python_does(self, rows):
        weight, bias = torch.randn(2, 256, device="cuda"), torch.randn(2, device="cuda")
        layers = [torch.randn(rows, 1, 64, device="cuda", dtype=torch.bfloat16) for _ in range(4)]
        active = torch.ones(rows, dtype=torch.bool, device="cuda")
        captured, plain = new_running(rows, "cuda"), new_running(rows, "cuda")
        gated_step(layers, weight, bias, new_running(rows, "cuda"), active)  # compiled before it is captured
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            gated_step(layers, weight, bias, captured, active)
        captured.copy_(new_running(rows, "cuda"))
        for t in range(20):
            for layer in layers:
                layer.normal_()
            active.copy_(torch.rand(rows, device="cuda") > t / 20)
            graph.replay()
            gated_step(layers, weight, bias, plain, active)
        assert torch.equal(captured, plain)

    def test_nothing_waits_for_the_device(self, rows):
        weight, bias = torch.randn(2, 256, device="cuda"), torch.randn(2, device="cuda")
        layers, running = [torch.randn(rows, 1, 64, device="cuda") for _ in range(4)], new_running(rows, "cuda")
        gated_step(layers, weight, bias, running)
        torch.cuda.set_sync_debug_mode("error")
        try:
            gated_step(layers, weight, bias, running)
        finally:
            torch.cuda.set_sync_debug_mode("default")
