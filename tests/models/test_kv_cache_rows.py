import pytest
import torch
from transformers import DynamicCache

from swift_rm.models.kv_cache_rows import SPARE, GrowingLayer, closed_up, keep_rows, refuse_cache, rows_like, take_rows


def filled(rows=3, tokens=5, layers=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    cache = DynamicCache()
    for layer in range(layers):
        cache.update(*torch.randn(2, rows, 2, tokens, 4, generator=generator), layer)
    return cache


def same(one, other):
    return all(
        torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values) for a, b in zip(one.layers, other.layers, strict=True)
    )


def test_a_growing_cache_is_the_dynamic_one_whatever_happens_to_its_rows():
    """The same repeats, steps and departures, done to both: every layer holds the same keys and values after each."""
    generator = torch.Generator().manual_seed(1)
    prompts = filled()
    rows = torch.tensor([0, 0, 2, 1, 1, 1])
    growing, plain = take_rows(prompts, rows), filled()
    plain.reorder_cache(rows)
    assert all(isinstance(layer, GrowingLayer) for layer in growing.layers)
    assert same(growing, plain)
    for step in range(3 * SPARE):  # past the room, several times
        for layer in range(2):
            new = torch.randn(2, len(rows), 2, 1, 4, generator=generator)
            got, expected = growing.update(*new, layer), plain.update(*new, layer)
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
        if step in (0, 7, 8, 2 * SPARE):
            stays = [row % 2 == 0 for row in range(len(rows))] if step else [row != 1 for row in range(len(rows))]
            rows = torch.tensor(closed_up(stays))
            keep_rows(growing, rows)
            plain.batch_select_indices(rows)
        assert same(growing, plain)
        assert growing.get_seq_length() == plain.get_seq_length()
    assert len(rows) == 1
    assert same(prompts, filled()), "the cache that rows were taken from is left as it was"


def test_rows_leave_before_the_first_step_too():
    growing, plain = take_rows(filled(), torch.tensor([2, 1, 0])), filled()
    plain.reorder_cache(torch.tensor([2, 1, 0]))
    for cache in (growing, plain):
        keep_rows(cache, torch.tensor([2, 1]))
    assert same(growing, plain)


@pytest.mark.parametrize(
    ("stays", "order"),
    [
        ([True, False, True, True, False, True], [0, 5, 2, 3]),
        ([False, False, True], [2]),
        ([True, True, False], [0, 1]),
        ([False, False], []),
        ([True, True], [0, 1]),
    ],
)
def test_the_last_rows_fill_the_gaps(stays, order):
    assert closed_up(stays) == order


def test_what_has_a_row_each_is_taken_and_the_rest_is_left():
    rows = torch.tensor([1, 1])
    assert rows_like("mask", torch.tensor([[1, 2], [3, 4], [5, 6]]), rows, 3).tolist() == [[3, 4], [3, 4]]
    assert rows_like("position_ids", torch.zeros(3, 3, 7), rows, 3).shape == (3, 2, 7)  # positions of three kinds
    assert rows_like("position_ids", torch.zeros(3, 7), rows, 3).shape == (2, 7)
    assert rows_like("cache_position", torch.zeros(3), rows, 3).shape == (3,), "one number for each token, not for each row"
    assert rows_like("logits_to_keep", 1, rows, 3) == 1


def test_no_cache_and_quantised_ones_are_refused_by_name():
    with pytest.raises(ValueError, match="needs use_cache=True"):
        refuse_cache(None)

    class QuantizedSomethingLayer:
        pass

    class Cache:
        layers = (QuantizedSomethingLayer(),)

    with pytest.raises(ValueError, match=r"quantised cache \(QuantizedSomethingLayer\)"):
        refuse_cache(Cache())
