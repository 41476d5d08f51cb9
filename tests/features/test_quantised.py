import pytest
import torch

from swift_rm.features.quantised import STORE_DTYPES, dequantise, is_quantised, quantise, torch_dtype


def round_trip(states, dtype="int8"):
    rounded, scale, zero = quantise(states, dtype)
    assert rounded.dtype == torch_dtype(dtype)
    assert scale.shape == zero.shape == (states.shape[1],)
    return dequantise(rounded, scale, zero), scale, zero


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_int8_is_off_by_at_most_half_a_scale_in_every_channel(dtype):
    states = (torch.randn(9000, 6) * torch.tensor([1e-3, 0.1, 1, 10, 100, 1000]) + torch.arange(6)).to(dtype)
    back, scale, _ = round_trip(states)
    error = (back - states.float()).abs().amax(0)
    span = states.float().amax(0) - states.float().amin(0)
    torch.testing.assert_close(scale, span / 254)
    assert (error <= scale * 0.5001 + states.float().abs().amax(0) * 2e-7).all()
    assert (error > scale * 0.4).all(), "a bound that nothing comes near would prove nothing"


def test_int8_equals_a_slow_reference():
    states = torch.randn(40, 3) * 5 + 100
    rounded, scale, zero = quantise(states, "int8")
    for d in range(3):
        low, high = float(states[:, d].min()), float(states[:, d].max())
        middle, step = (low + high) / 2, (high - low) / 254
        assert float(zero[d]) == pytest.approx(middle)
        assert float(scale[d]) == pytest.approx(step, rel=1e-4)
        expected = [round((float(x) - float(zero[d])) / float(scale[d])) for x in states[:, d]]
        assert (rounded[:, d] - torch.tensor(expected)).abs().max() <= 1  # a tie may fall either way
        assert (rounded[:, d] == torch.tensor(expected)).float().mean() > 0.9


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3"])
def test_a_constant_channel_is_exact(dtype):
    states = torch.tensor([[3.25, -1e30, 0.0]]).repeat(50, 1)
    back, scale, _ = round_trip(states, dtype)
    assert torch.equal(back, states)
    assert scale.tolist() == [0, 0, 0]


@pytest.mark.parametrize(("dtype", "share"), [("int8", 1 / 500), ("float8_e4m3", 1 / 25)])
def test_a_huge_offset_does_not_cost_the_channel_its_small_movements(dtype, share):
    states = torch.randn(2000, 4) + torch.tensor([0.0, 1000.0, -5000.0, 20000.0])
    back, *_ = round_trip(states, dtype)
    span = states.amax(0) - states.amin(0)
    assert ((back - states).abs().amax(0) <= share * span + 0.002).all()


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3"])
def test_extreme_outliers_stay_finite_and_are_kept(dtype):
    states = torch.randn(100, 3)
    states[7, 0], states[8, 0], states[9, 1] = 3.3e38, -3.3e38, 1e6
    back, *_ = round_trip(states, dtype)
    assert torch.isfinite(back).all()
    torch.testing.assert_close(back[[7, 8], 0], states[[7, 8], 0], rtol=0.04, atol=0)
    torch.testing.assert_close(back[9, 1], states[9, 1], rtol=0.04, atol=0)
    assert (back[:, 2] - states[:, 2]).abs().max() < 0.15, "an outlier in one channel leaves the others alone"


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3"])
def test_an_empty_shard_and_a_single_row(dtype):
    back, scale, zero = round_trip(torch.empty(0, 4), dtype)
    assert back.shape == (0, 4)
    assert scale.tolist() == zero.tolist() == [0] * 4
    one = torch.randn(1, 4)
    assert torch.equal(round_trip(one, dtype)[0], one)


def test_quantising_into_memory_that_is_given_is_the_same():
    states, out = torch.randn(5000, 3).bfloat16(), torch.zeros(5000, 3, dtype=torch.int8)
    assert quantise(states, "int8", out)[0] is out
    assert torch.equal(out, quantise(states, "int8")[0])


def test_dtypes_of_a_store():
    assert [dtype for dtype in STORE_DTYPES if is_quantised(dtype)] == ["float8_e4m3", "int8"]
    with pytest.raises(ValueError, match=r"dtype of features must be one of .*'int8'.*, got 'int4'"):
        torch_dtype("int4")
