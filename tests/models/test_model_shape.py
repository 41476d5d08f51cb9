from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from swift_rm.capture.tap import HiddenStateTap
from swift_rm.models.model_shape import ModelShape, find_decoder, model_shape
from tests.tiny_models import HIDDEN, LAYERS, VOCAB, tiny_model


class Wrapper(nn.Module):
    """A wrapper without a config, as DataParallel is."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, **inputs: Any) -> Any:
        return self.module(**inputs)


def vision_language_model() -> Any:
    from transformers import AutoConfig, AutoModelForImageTextToText

    text = {"model_type": "llama", "vocab_size": VOCAB, "num_attention_heads": 4}
    vision = {"model_type": "clip_vision_model", "image_size": 8, "patch_size": 4, "num_attention_heads": 4}
    sizes = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "intermediate_size": 48}
    config = AutoConfig.for_model("llava", text_config={**text, **sizes}, vision_config={**vision, **sizes})
    return AutoModelForImageTextToText.from_config(config).eval()


@pytest.mark.parametrize("name", ["llama", "gpt2", "mpt", "bloom", "gpt_neo"])  # each config names its sizes otherwise
def test_model_shape(name: str) -> None:
    assert model_shape(tiny_model(name)) == ModelShape(layers=LAYERS, hidden_size=HIDDEN)


def test_a_model_without_a_size_or_a_config_is_refused() -> None:
    silent = Wrapper(nn.Linear(2, 2))
    silent.config = SimpleNamespace(get_text_config=lambda decoder: SimpleNamespace(num_hidden_layers=None))
    with pytest.raises(ValueError, match="config of Wrapper has no usable num_hidden_layers: it is None"):
        model_shape(silent)
    with pytest.raises(ValueError, match="Linear holds no transformers model"):
        model_shape(nn.Linear(2, 2))


def test_the_decoder_is_the_innermost_model_around_the_blocks() -> None:
    opt, llama = tiny_model("opt"), tiny_model("llama")
    assert find_decoder(opt).path == (opt, opt.model, opt.model.decoder)
    assert find_decoder(llama.model).path == (llama.model,)
    assert find_decoder(Wrapper(llama)).owner is llama.model
    assert find_decoder(llama).blocks is llama.model.layers


@torch.no_grad()
def test_wrapped_models_and_bare_decoders_can_be_read() -> None:
    llama = tiny_model("llama")
    ids = torch.arange(3, 9)[None]
    expected = llama(input_ids=ids, output_hidden_states=True).hidden_states
    for model in (Wrapper(llama), llama.model):
        with HiddenStateTap(model, range(LAYERS + 1)) as tap:
            model(input_ids=ids)
        assert all(torch.equal(tap.states[layer], expected[layer]) for layer in range(LAYERS + 1))


@torch.no_grad()
def test_the_language_model_is_found_beside_a_vision_tower_of_the_same_depth() -> None:
    model = vision_language_model()
    assert find_decoder(model).blocks is model.get_decoder().layers
    ids = torch.arange(3, 9)[None]
    with HiddenStateTap(model, range(LAYERS + 1)) as tap:
        model(input_ids=ids)
    expected = model(input_ids=ids, output_hidden_states=True).hidden_states
    assert all(torch.equal(tap.states[layer], expected[layer]) for layer in range(LAYERS + 1))


def test_the_final_norm_may_stand_outside_the_module_that_owns_the_blocks() -> None:
    from transformers import AutoModelForCausalLM, RobertaPreLayerNormConfig

    sizes = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 48}
    config = RobertaPreLayerNormConfig(vocab_size=VOCAB, is_decoder=True, **sizes)
    model = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.arange(3, 9)[None]
    with torch.no_grad(), HiddenStateTap(model, range(LAYERS + 1)) as tap:
        expected = model(input_ids=ids, output_hidden_states=True).hidden_states
    assert all(torch.equal(tap.states[layer], expected[layer]) for layer in range(LAYERS + 1))


def test_experts_as_many_as_blocks_are_not_taken_for_them() -> None:
    model = tiny_model("jamba", num_experts=LAYERS)
    assert find_decoder(model).blocks is model.model.layers


def test_several_lists_or_none_are_named() -> None:
    model = tiny_model("llama")
    model.model.adapters = nn.ModuleList(nn.Linear(2, 2) for _ in range(LAYERS))
    with pytest.raises(ValueError, match=r"3 blocks .* several \(model.layers, model.adapters\)"):
        find_decoder(model)
    model = tiny_model("llama")
    model.config.num_hidden_layers = 7
    with pytest.raises(ValueError, match=r"7 blocks .* but has none"):
        find_decoder(model)


def test_models_that_number_their_hidden_states_otherwise_are_refused() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, T5Config, T5ForConditionalGeneration

    sizes = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS}
    for name, past in (("mamba", "cache_params"), ("rwkv", "state")):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **sizes))
        with pytest.raises(ValueError, match=f"keeps its past in '{past}'"):
            HiddenStateTap(model)
    t5 = T5ForConditionalGeneration(T5Config(d_model=HIDDEN, d_kv=8, d_ff=32, num_layers=LAYERS, num_heads=4))
    with pytest.raises(ValueError, match="T5ForConditionalGeneration is an encoder-decoder model"):
        HiddenStateTap(t5)
