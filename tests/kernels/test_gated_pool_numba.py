import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from swift_rm_kernels import gated_pool_numba, gated_pool_numba_kernels, gated_pool_torch
from swift_rm_kernels.gated_pool_numba import token_scores, weight_gradient

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOKENS, WIDTHS = (0, 1, 3, 7, 8, 9, 65), (1, 3, 16, 17, 96, 257)

pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.fixture(autouse=True, params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request, monkeypatch):
    """Small cuts, so that small tensors are shared out like large ones."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    for name, value in {"GRAIN": 1, "TILE": 100}.items():
        monkeypatch.setattr(gated_pool_numba, name, value)
    yield request.param
    torch.set_num_threads(before)


def numbers(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def check(layers, rows=2):
    """Compare both passes with float64, and their errors with those of plain torch in the precision of the states."""
    tokens, width = len(layers[0]), sum(layer.shape[1] for layer in layers)
    weight, bias, d_scores = numbers(rows, width), numbers(rows), numbers(tokens, rows, seed=1)
    states = torch.cat(layers, -1)
    low, exact = states.dtype, states.double()
    scores, gradient = token_scores(layers, weight, bias), weight_gradient(layers, d_scores)
    assert scores.dtype == gradient.dtype == torch.float32
    near(
        scores,
        exact @ weight.double().T + bias.double(),
        (states @ weight.to(low).T + bias.to(low)),
        exact.abs() @ weight.double().abs().T + bias.abs(),
    )
    near(gradient, d_scores.double().T @ exact, d_scores.to(low).T @ states, d_scores.double().abs().T @ exact.abs())


def near(got, truth, plain, size):
    assert got.shape == truth.shape
    error = (got - truth).abs()
    assert bool((error <= 1e-6 * size + 1e-12).all()), f"off by {float((error / size).max())} of the terms' sizes"
    if got.numel():
        assert float(error.max()) <= float((plain - truth).abs().max()) + 1e-5 * float(truth.abs().max())


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_both_passes_equal_float64_on_ragged_shapes(dtype, rows):
    for tokens in TOKENS:
        for width in WIDTHS:
            check([numbers(tokens, width, dtype=dtype)], rows)
        check([numbers(tokens, width, dtype=dtype) for width in WIDTHS], rows)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layers_may_be_views_of_any_outer_stride(dtype):
    long, wide = numbers(65, 96, dtype=dtype), numbers(33, 301, dtype=dtype)
    one = numbers(1, 257, dtype=dtype)
    check([long[::2], wide[:, 7:260], one.expand(33, 257), wide[:, 5:6], numbers(33, 0, dtype=dtype)])
    check([one.expand(33, 257)])
    check([wide[:, :1].expand(33, 1)[3:], numbers(30, 3, dtype=dtype)])
    check([numbers(2, 40, 3, dtype=dtype).transpose(0, 1)[:, 1]])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_tokens_are_summed_in_parts_that_take_two_floats_a_token_at_most(dtype, monkeypatch):
    made = []
    empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda tensor, *sizes: made.append(sizes) or empty(tensor, *sizes))
    check([numbers(1003, 60, dtype=dtype), numbers(1003, 70, dtype=dtype)])
    check([numbers(1003, 130, dtype=dtype)], rows=1)
    parts = [sizes[0] for sizes in made if len(sizes) == 3]
    assert min(parts) > 1 and max(parts) * 2 * 130 <= 2 * 1003


def test_long_sums_of_one_sign_keep_their_digits():
    states, ones = torch.rand(300_000, 2, generator=torch.Generator().manual_seed(0)), torch.ones(300_000, 2)
    truth = states.double().sum(0)
    assert bool(((weight_gradient([states], ones) - truth).abs() <= 1e-6 * truth).all())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_bad_state_reaches_its_own_token_and_its_own_column_only(dtype, bad):
    states, weight, d_scores = numbers(35, 130, dtype=dtype), numbers(2, 130), numbers(35, 2)
    states[::7, 40] = bad
    expected = torch.zeros(35, dtype=torch.bool)
    expected[::7] = True
    scores, gradient = token_scores([states], weight, torch.zeros(2)), weight_gradient([states], d_scores)
    assert scores.isfinite().all(1).logical_not().tolist() == scores.isfinite().any(1).logical_not().tolist() == expected.tolist()
    assert (~gradient.isfinite()).nonzero()[:, 1].tolist() == [40, 40]
    plain = states.float() @ weight.T
    assert torch.equal(scores[expected].nan_to_num(7.0), plain[expected].nan_to_num(7.0))


def test_every_finite_value_of_16_bits_is_read_as_it_is():
    for dtype in (torch.bfloat16, torch.float16):
        values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
        values = values[values.isfinite()][:, None]
        assert torch.equal(token_scores([values], torch.ones(1, 1), torch.zeros(1)), values.float())


def test_float16_goes_through_torch_on_a_cpu_that_does_not_know_it(monkeypatch):
    layers = [numbers(9, 17, dtype=torch.float16)]
    weight, bias, d_scores = numbers(2, 17), numbers(2), numbers(9, 2)
    monkeypatch.setattr(gated_pool_numba, "widens_half", lambda: False)
    monkeypatch.setattr(gated_pool_numba, "_run", None)
    assert torch.equal(token_scores(layers, weight, bias), gated_pool_torch.token_scores(layers, weight, bias))
    assert torch.equal(weight_gradient(layers, d_scores), gated_pool_torch.weight_gradient(layers, d_scores))


def test_several_threads_may_call_at_once():
    layers, weight, bias = [numbers(200, 130), numbers(200, 257)], numbers(2, 387), numbers(2)
    expected, got = token_scores(layers, weight, bias), {}

    def call(i):
        for _ in range(5):
            got[i] = token_scores(layers, weight, bias)

    callers = [threading.Thread(target=call, args=(i,)) for i in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert all(torch.equal(got[i], expected) for i in range(3))


def test_without_openmp_it_runs_on_threads_of_its_own(monkeypatch):
    monkeypatch.setattr(gated_pool_numba, "_team", lambda: None)
    check([numbers(203, 130), numbers(203, 257)])


def test_where_nothing_can_be_written_it_compiles_in_memory(monkeypatch):
    def compile_only(*args, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return cfunc(*args, **options)

    cfunc = gated_pool_numba_kernels.cfunc
    monkeypatch.setattr(gated_pool_numba_kernels, "cfunc", compile_only)
    function = gated_pool_numba_kernels.compiled.__wrapped__
    assert function(gated_pool_numba_kernels.take_scores, np.float32).address


FORK = """
import os, torch
from swift_rm_kernels.gated_pool_numba import token_scores, weight_gradient
torch.set_num_threads(2)
states, weight = torch.randn(2000, 300), torch.randn(2, 300)
def work():
    return token_scores([states], weight, torch.zeros(2)), weight_gradient([states], torch.ones(2000, 2))
before, total = work(), states.sum()  # torch and the kernels have their threads now
child = os.fork()
if child == 0:
    same = all(torch.equal(a, b) for a, b in zip(before, work()))
    os._exit(0 if same else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize("threads", [2], indirect=True)
def test_a_forked_process_does_not_wait_for_threads_it_has_not():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "0"), done.stderr
