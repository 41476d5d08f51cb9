from __future__ import annotations

from typing import Any

import pytest
import torch

from swift_rm.capture.tap import HiddenStateTap, LayerStates
from tests.generate_calls import NEW, greedy, hooks, padded_batch
from tests.tiny_models import ARCHITECTURES, HIDDEN, LAYERS, tiny_model

ALL = tuple(range(-LAYERS - 1, LAYERS + 1))


def assert_equal(got: LayerStates, expected: Any) -> None:
    for layer in ALL:
        assert torch.equal(got[layer], expected[layer]), f"layer {layer}"


@pytest.fixture
def llama() -> Any:
    return tiny_model("llama")


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_forward_states_are_those_of_transformers(name: str) -> None:
    model, batch = tiny_model(name), padded_batch()
    with HiddenStateTap(model, ALL) as tap:
        model(**batch)
    expected = model(**batch, output_hidden_states=True).hidden_states
    assert len(expected) == LAYERS + 1
    assert len({state.abs().sum().item() for state in expected}) == LAYERS + 1, "layers that are alike prove nothing"
    assert_equal(tap.states, expected)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "openai-gpt"])  # it has no cache
def test_every_step_of_generate_is_seen(name: str) -> None:
    model, batch, calls = tiny_model(name), padded_batch(), list[LayerStates]()
    with HiddenStateTap(model, ALL, on_forward=calls.append) as tap:
        tokens = greedy(model, batch, use_cache=True)
    expected = greedy(model, batch, use_cache=True, output_hidden_states=True, return_dict_in_generate=True, disable_compile=True)
    assert torch.equal(tokens, expected.sequences)
    assert [call[0].shape[1] for call in calls] == [9, 1, 1, 1, 1]
    for call, step in zip(calls, expected.hidden_states, strict=True):
        assert_equal(call, step)
    assert_equal(tap.states, [torch.cat(steps, dim=1) for steps in zip(*expected.hidden_states, strict=True)])
    assert_equal(tap.last, expected.hidden_states[-1])
    assert tap.states[0].shape == (2, tokens.shape[1] - 1, HIDDEN)


@torch.no_grad()
def test_only_what_is_asked_for_is_hooked_and_kept(llama: Any) -> None:
    before = hooks(llama)
    with HiddenStateTap(llama, (-2,)) as tap:
        assert hooks(llama) - before == 3  # one layer, and the begin and the end of a call
        llama(**padded_batch())
    assert list(tap.states) == [-2]
    assert hooks(llama) == before


@torch.no_grad()
def test_blocks_may_return_tuples_or_tensors_and_the_model_a_tuple(llama: Any) -> None:
    batch = padded_batch()
    expected = llama(**batch, output_hidden_states=True).hidden_states
    for block in llama.model.layers[:-1]:  # a tuple out of every block, taken apart before the next
        block.register_forward_hook(lambda module, args, output: (output, None))
        block.register_forward_hook(lambda module, args, output: output)
    for block in llama.model.layers[1:]:
        block.register_forward_pre_hook(lambda module, args: (args[0][0], *args[1:]))
    with HiddenStateTap(llama, ALL) as tap:
        llama(**batch, return_dict=False)
    assert_equal(tap.states, expected)


def test_hidden_states_may_be_passed_by_keyword(llama: Any) -> None:
    blocks = llama.model.layers
    batch = padded_batch()
    expected = llama(**batch, output_hidden_states=True).hidden_states
    call = type(blocks[0]).__call__

    class ByKeyword(type(blocks[0])):  # type: ignore[misc]
        def __call__(self, hidden_states: torch.Tensor, **kwargs: Any) -> Any:
            return call(self, hidden_states=hidden_states, **kwargs)

    blocks[0].__class__ = ByKeyword
    with HiddenStateTap(llama, ALL) as tap:
        llama(**batch)
    assert_equal(tap.states, expected)


@torch.no_grad()
def test_a_new_sequence_replaces_the_last_and_chunks_are_joined(llama: Any) -> None:
    first, second = padded_batch((4,)), padded_batch((7,), seed=1)
    with HiddenStateTap(llama, ALL) as tap:
        llama(**first)
        greedy(llama, second, prefill_chunk_size=3)
        assert tap.states[-1].shape == (1, 7 + NEW - 1, HIDDEN)
        joined = tap.states
        greedy(llama, second)
        for layer in ALL:
            torch.testing.assert_close(tap.states[layer], joined[layer])
        greedy(llama, second, use_cache=False)
        for layer in ALL:
            torch.testing.assert_close(tap.states[layer], joined[layer])
        assert tap.last[-1].shape[1] == 7 + NEW - 1


@torch.no_grad()
def test_states_read_midway_go_on_growing(llama: Any) -> None:
    ids = padded_batch((8,))["input_ids"]
    with HiddenStateTap(llama, ALL) as tap:
        cache = llama(ids[:, :3]).past_key_values
        assert tap.states[2].shape[1] == 3
        for start in range(3, 8):
            llama(ids[:, start : start + 1], past_key_values=cache)
            assert tap.states[2].shape[1] == start + 1
            assert tap.last[2].shape[1] == 1
        joined = tap.states
        llama(ids)
        torch.testing.assert_close(joined[2], tap.states[2])


@torch.no_grad()
def test_cleared_states_are_gone_and_a_sequence_may_start_within_a_cache(llama: Any) -> None:
    ids = padded_batch((8,))["input_ids"]
    with HiddenStateTap(llama, ALL) as tap:
        cache = llama(ids[:, :5]).past_key_values
        tap.clear()
        with pytest.raises(RuntimeError, match="no forward call"):
            _ = tap.states
        llama(ids[:, 5:], past_key_values=cache)
    assert tap.states[-1].shape[1] == 3


@torch.no_grad()
def test_nothing_is_stored_without_keep(llama: Any) -> None:
    calls = list[LayerStates]()
    with HiddenStateTap(llama, keep=False, on_forward=calls.append) as tap:
        llama(**padded_batch())
    assert list(calls[0]) == [-4, -3, -2, -1]
    with pytest.raises(RuntimeError, match="keep=False"):
        _ = tap.states


@torch.no_grad()
def test_calls_with_other_rows_cannot_be_joined(llama: Any) -> None:
    ids = padded_batch((6,))["input_ids"]
    with HiddenStateTap(llama) as tap:
        cache = llama(ids[:, :5]).past_key_values
        cache.batch_repeat_interleave(4)
        llama(ids[:, 5:].repeat(4, 1), past_key_values=cache)
    assert tap.last[-1].shape == (4, 1, HIDDEN)
    with pytest.raises(RuntimeError, match=r"1 rows, then 4.*clear\(\)"):
        _ = tap.states


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
def test_states_carry_gradients_also_under_gradient_checkpointing(llama: Any) -> None:
    batch = padded_batch()
    with HiddenStateTap(llama, ALL) as tap:
        llama(**batch)
        tap.states[2].square().sum().backward()
        expected = llama.model.embed_tokens.weight.grad.clone()
        llama.zero_grad()
        llama.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        llama.train()
        llama(**batch)
        tap.states[2].square().sum().backward()
    assert expected.abs().sum() > 0
    torch.testing.assert_close(llama.model.embed_tokens.weight.grad, expected)


@torch.no_grad()
def test_a_block_run_again_outside_a_forward_call_is_not_recorded(llama: Any) -> None:
    calls: list[tuple[Any, Any]] = []
    block = llama.model.layers[0]
    with HiddenStateTap(llama, ALL) as tap:
        handle = block.register_forward_pre_hook(lambda module, *inputs: calls.append(inputs), with_kwargs=True)
        llama(**padded_batch(), use_cache=False)
        handle.remove()
        first = tap.states
        block(*calls[0][0], **calls[0][1])  # as a backward pass does to recompute what was not kept
    assert_equal(tap.states, first)


def test_no_hook_is_left_after_an_exception(llama: Any) -> None:
    def interrupt(states: LayerStates) -> None:
        raise KeyError("stop")

    before = hooks(llama)
    with pytest.raises(KeyError, match="stop"), HiddenStateTap(llama, ALL, on_forward=interrupt):
        assert hooks(llama) == before + LAYERS + 2
        llama(**padded_batch())
    assert hooks(llama) == before


def test_no_hook_is_left_when_attaching_fails_half_way(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(hook: Any) -> None:
        raise MemoryError

    before = hooks(llama)
    monkeypatch.setattr(llama.model.layers[1], "register_forward_hook", refuse)
    with pytest.raises(MemoryError), HiddenStateTap(llama, ALL):
        pass
    assert hooks(llama) == before


@torch.no_grad()
def test_a_tap_may_be_used_again_but_not_within_itself(llama: Any) -> None:
    tap = HiddenStateTap(llama)
    with tap:
        llama(**padded_batch())
        with pytest.raises(RuntimeError, match="attached already"), tap:
            pass
        assert tap.states[-1].shape == (2, 9, HIDDEN)
    with tap, HiddenStateTap(llama, (0, 3)) as other:
        llama(**padded_batch((4,)))
    assert tap.states[-1].shape == (1, 4, HIDDEN)
    assert torch.equal(tap.states[-1], other.states[3])


@torch.no_grad()
def test_a_forward_call_that_failed_leaves_the_next_one_untouched(llama: Any) -> None:
    batch = padded_batch()
    with HiddenStateTap(llama, ALL) as tap:
        llama(**padded_batch((4,)))
        handle = llama.model.layers[2].register_forward_pre_hook(lambda module, args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            llama(**batch)
        with pytest.raises(RuntimeError, match="no forward call"):
            _ = tap.states
        handle.remove()
        llama(**batch)
    assert_equal(tap.states, llama(**batch, output_hidden_states=True).hidden_states)


def test_wrong_layers_are_named_with_the_right_ones(llama: Any) -> None:
    for layer in (LAYERS + 1, -LAYERS - 2):
        message = rf"LlamaForCausalLM has no layer {layer}: it has layers 0 .* to 3 .*, which are also -4 to -1"
        with pytest.raises(ValueError, match=message):
            HiddenStateTap(llama, (0, layer))
    with pytest.raises(ValueError, match="no layers"):
        HiddenStateTap(llama, ())
