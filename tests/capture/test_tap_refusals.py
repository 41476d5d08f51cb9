from __future__ import annotations

from typing import Any

import pytest
import torch

from swift_rm.capture.tap import HiddenStateTap
from tests.generate_calls import hooks
from tests.tiny_models import VOCAB, tiny_model

IDS = torch.randint(3, VOCAB, (1, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def llama() -> Any:
    return tiny_model("llama")


def compile_wrapped(model: Any) -> Any:
    return torch.compile(model, backend="eager")


def compile_in_place(model: Any) -> Any:
    model.compile(backend="eager")
    return model


def compile_forward(model: Any) -> Any:
    model.model.forward = torch.compile(model.model.forward, backend="eager")
    return model


def compile_block(model: Any) -> Any:
    model.model.layers[1].compile(backend="eager")
    return model


@pytest.mark.parametrize("compiled", [compile_wrapped, compile_in_place, compile_forward, compile_block])
def test_compiled_models(llama: Any, compiled: Any) -> None:
    model = compiled(llama)
    with (
        pytest.raises(RuntimeError, match="is compiled, and hooks attached to a compiled module"),
        HiddenStateTap(model),
    ):
        pass
    assert hooks(llama) == 0


def test_a_compiled_part_of_a_block_and_a_forward_kept_from_the_compiler_do_no_harm(llama: Any) -> None:
    llama.model.layers[1].mlp.compile(backend="eager")
    llama.model.forward = torch.compiler.disable(llama.model.forward)
    with HiddenStateTap(llama):
        assert hooks(llama) == 5


def test_generate_with_compiled_steps(llama: Any) -> None:
    from transformers import CompileConfig

    everywhere = CompileConfig(backend="eager", mode=None)
    everywhere._compile_all_devices = True  # as on an accelerator
    settings: dict[str, Any] = {"cache_implementation": "static", "max_new_tokens": 3, "do_sample": False}
    with HiddenStateTap(llama) as tap:
        llama.generate(IDS, **settings)  # a static cache alone is no reason
    assert tap.states[-1].shape[1] == 9 + 3 - 1
    with pytest.raises(RuntimeError, match="compiles its steps for a StaticCache"), HiddenStateTap(llama):
        llama.generate(IDS, compile_config=everywhere, **settings)
    assert hooks(llama) == 0


@pytest.mark.parametrize("drafts", ["prompt lookup", "assistant"])
def test_assisted_decoding(llama: Any, drafts: str) -> None:
    if drafts == "assistant":
        settings: dict[str, Any] = {"assistant_model": tiny_model("llama", seed=1)}
    else:
        settings = {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1}
    repeating = torch.tensor([[5, 6, 7, 5, 6, 7, 8, 5]])
    with pytest.raises(RuntimeError, match=r"the cache was cut back from \d+ to \d+ tokens"), HiddenStateTap(llama):
        llama.generate(repeating, max_new_tokens=20, do_sample=False, **settings)
    assert hooks(llama) == 0


@torch.no_grad()
def test_a_cache_that_went_on_elsewhere(llama: Any) -> None:
    elsewhere = llama(IDS[:, :7]).past_key_values
    with pytest.raises(RuntimeError, match="3 tokens entered the cache unseen"), HiddenStateTap(llama):
        llama(IDS[:, :4])
        llama(IDS[:, 7:8], past_key_values=elsewhere)


@torch.no_grad()
def test_a_crop_of_ones_own_is_fine_after_clear(llama: Any) -> None:
    with HiddenStateTap(llama) as tap:
        cache = llama(IDS[:, :6]).past_key_values
        cache.crop(-2)
        tap.clear()
        llama(IDS[:, 4:], past_key_values=cache)
    assert tap.states[-1].shape[1] == 5


def test_generate_batch_whose_thread_swallows_the_refusal(llama: Any) -> None:
    from transformers import ContinuousBatchingConfig

    small = ContinuousBatchingConfig(num_blocks=8, max_batch_tokens=32)
    tap = HiddenStateTap(llama)
    with pytest.raises(RuntimeError, match="generate_batch packs the tokens of several requests"), tap:
        llama.generate_batch(inputs=[[5, 6, 7], [8, 9]], max_new_tokens=3, continuous_batching_config=small, progress_bar=False)
    assert hooks(llama) == 0
    with pytest.raises(RuntimeError, match="generate_batch"):
        _ = tap.states


@torch.no_grad()
def test_blocks_that_are_skipped_repeated_or_not_of_one_state_a_token(llama: Any) -> None:
    blocks = llama.model.layers
    with pytest.raises(RuntimeError, match="layer 2 was computed twice"), HiddenStateTap(llama):
        blocks[2].forward = lambda state, **inputs: blocks[1](state, **inputs)
        llama(IDS)
    with pytest.raises(RuntimeError, match="without showing layer 2 to its hook"), HiddenStateTap(llama):
        blocks[1].__class__ = type("Skipped", (type(blocks[1]),), {"__call__": lambda self, state, **inputs: state})
        llama(IDS)
    with pytest.raises(RuntimeError, match=r"layer 1 of this model is a tensor \[1, 9, 1, 32\]"), HiddenStateTap(llama):
        blocks[0].forward = lambda state, **inputs: state[:, :, None]
        llama(IDS)


@torch.no_grad()
def test_a_refusal_caught_inside_still_counts_until_cleared(llama: Any) -> None:
    cache = llama(IDS[:, :6]).past_key_values
    with HiddenStateTap(llama) as tap:
        llama(IDS[:, 6:], past_key_values=cache)
        cache.crop(-2)
        with pytest.raises(RuntimeError, match="cut back"):
            llama(IDS[:, 7:], past_key_values=cache)
        with pytest.raises(RuntimeError, match="cut back"):
            _ = tap.states
        tap.clear()
        llama(IDS)
    assert tap.states[-1].shape[1] == 9
