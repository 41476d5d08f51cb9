"""Which arguments gated_pool refuses, and which kernels it takes for those that it accepts."""

import pytest
import torch
from swift_rm_kernels import gated_pool


def test_which_kernels_are_taken_follows_device_size_and_dtype(monkeypatch):
    from types import SimpleNamespace

    from swift_rm_kernels import dispatch

    monkeypatch.setattr(dispatch, "_module", lambda name: name.removeprefix("swift_rm_kernels."))
    monkeypatch.setattr(dispatch, "_installed", lambda package: True)

    def layer(device, dtype=torch.bfloat16, nbytes=1 << 30):
        return SimpleNamespace(device=torch.device(device), dtype=dtype, nbytes=nbytes)

    def taken(operation, states, head=torch.float32):
        return dispatch.kernels(operation, "auto", [states], SimpleNamespace(dtype=head))

    assert taken("gated_pool", layer("cuda")) == "gated_pool_triton" and taken("gated_step", layer("cuda")) == "gated_step_triton"
    assert taken("gated_pool", layer("cpu")) == "gated_pool_numba" and taken("gated_step", layer("cpu")) == "gated_step_torch"
    assert taken("gated_pool", layer("cpu", nbytes=1 << 20)) == taken("gated_pool", layer("mps")) == "gated_pool_torch"
    for operation in ("gated_pool", "gated_step"):
        for device in ("cuda", "cpu"):
            assert taken(operation, layer(device, torch.float64)) == taken(operation, layer(device), torch.float64)
            assert taken(operation, layer(device), torch.float64) == f"{operation}_torch"


def good():
    return {
        "states": [torch.zeros(4, 3), torch.zeros(4, 5)],
        "weight": torch.zeros(2, 8),
        "bias": torch.zeros(2),
        "offsets": torch.tensor([0, 1, 4]),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"states": []}, "states is empty"),
        ({"states": torch.zeros(4)}, r"states must be floating-point tensors \[T, d\], got shape \(4,\)"),
        ({"states": torch.zeros(4, 8, dtype=torch.int64)}, "got shape .* of torch.int64"),
        (
            {"states": [torch.zeros(4, 3), torch.zeros(4, 5).half()]},
            r"one dtype: states\[0\] has torch.float32, states\[1\] torch.float16",
        ),
        ({"states": [torch.zeros(4, 3), torch.zeros(4, 5, device="meta")]}, r"one device: states\[0\] has cpu, states\[1\] meta"),
        ({"states": [torch.zeros(4, 3), torch.zeros(5, 5)]}, r"same tokens: states\[0\] is \(4, 3\), states\[1\] \(5, 5\)"),
        ({"states": torch.zeros(8, 4).T}, r"unit inner stride, states\[0\] has strides \(1, 4\)"),
        ({"weight": torch.zeros(2, 7)}, "states are 8 wide in all, but weight is 7 wide"),
        ({"weight": torch.zeros(3, 8)}, r"got \[3, 8\] and \[2\]"),
        ({"bias": torch.zeros(1)}, r"got \[2, 8\] and \[1\]"),
        ({"bias": torch.zeros(2).half()}, "one floating dtype: weight torch.float32, bias torch.float16"),
        (
            {"weight": torch.zeros(2, 8, device="meta")},
            "weight must be on the device of the states: states on cpu, weight on meta",
        ),
        ({"offsets": torch.tensor([0, 3, 1, 4])}, r"offsets must ascend from 0 to 4 .* got \[0, 3, 1, 4\]"),
        ({"offsets": torch.tensor([0, 3])}, r"offsets must ascend from 0 to 4 .* got \[0, 3\]"),
        ({"offsets": torch.tensor([1, 4])}, r"offsets must ascend from 0"),
        ({"offsets": torch.tensor([0.0, 4.0])}, "1-D integer tensor"),
        ({"offsets": torch.zeros(0, dtype=torch.int64)}, "1-D integer tensor"),
        ({"mask": torch.ones(3, dtype=torch.bool)}, r"mask must be 4 booleans, one a token, got shape \(3,\)"),
        ({"mask": torch.ones(4, dtype=torch.bool, device="meta")}, "mask must be on the device of the states, cpu, got meta"),
        ({"mask": torch.ones(4)}, "mask must be 4 booleans.* of torch.float32"),
        ({"states": torch.zeros(1, 8).expand(2**31, 8)}, "states have 2147483648 tokens, but at most 2147483647"),
        ({"states": torch.zeros(4, 1, 8)}, r"states must be \[T, d\], got \[4, 1, 8\]"),
        ({"impl": "cuda"}, "impl of gated_pool must be one of .* got 'cuda'"),
        (
            {"impl": "numba", "states": torch.zeros(4, 8).double()},
            "impl='numba' reads bfloat16, float16 and float32, got torch.float64",
        ),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(change, message, monkeypatch):
    for name in ("torch", "numba", "triton"):
        monkeypatch.setitem(__import__("sys").modules, f"swift_rm_kernels.gated_pool_{name}", None)
    with pytest.raises(ValueError, match=message):
        gated_pool(**(good() | change))


def test_triton_says_why_it_cannot_read_a_cpu_tensor(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=r"impl='triton' needs states on a GPU .* these are on cpu"):
        gated_pool(**good(), impl="triton")


def test_a_missing_package_is_one_sentence_with_the_way_to_install_it(monkeypatch):
    from swift_rm_kernels import dispatch

    monkeypatch.setattr(dispatch, "_installed", lambda package: False)
    with pytest.raises(ModuleNotFoundError, match=r'impl=.numba. needs numba: pip install "swift-rm\[cpu\]"'):
        gated_pool(**good(), impl="numba")
    assert gated_pool(**good()).tolist() == [0.0, 0.0]
