"""Each thing of transformers' that is not promised stands where swift_rm looks for it, in the version that is installed."""

import copy
import importlib.metadata
import inspect

import pytest
import torch
from packaging.version import Version
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer, StaticCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from swift_rm import BestOfNDecoding
from swift_rm.models import transformers_internals as internals
from swift_rm.models.transformers_internals import CACHE_NAMES, INTERNALS
from tests.reward_models import make_rm
from tests.tiny_models import tiny_model

VERSION = Version(importlib.metadata.version("transformers"))
NAME = "cache" if Version("5.24") <= VERSION else "past_key_values"
IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama")


def parameters(function):
    return inspect.signature(function).parameters


def recurrent(name):
    sizes = {"vocab_size": 101, "hidden_size": 32, "num_hidden_layers": 3}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **sizes))


def pads():
    seen = []

    def loop(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        seen.append((internals.pads_with(generation_config), hasattr(generation_config, "_pad_token_tensor"), logits_processor))
        return input_ids

    tiny_model("llama").generate(
        IDS, custom_generate=loop, pad_token_id=7, repetition_penalty=1.2, max_new_tokens=2, do_sample=True
    )
    return seen[0]


def static():
    return StaticCache(config=tiny_model("llama").config, max_cache_len=8)


def layer():
    model = tiny_model("llama")
    return internals.cache_of(model(IDS)).layers[0]


CHECKS = {
    "_prefill": lambda: list(parameters(GenerationMixin._prefill))[1:4] == ["input_ids", "generation_config", "model_kwargs"],
    "_update_model_kwargs_for_generation": lambda: list(parameters(GenerationMixin._update_model_kwargs_for_generation))[1:3]
    == ["outputs", "model_kwargs"],
    "prepare_inputs_for_generation(next_sequence_length=)": lambda: "next_sequence_length"
    in parameters(GenerationMixin.prepare_inputs_for_generation),
    "cache": lambda: "cache" in parameters(tiny_model("llama").forward) and "cache" in tiny_model("llama")(IDS),
    "past_key_values": lambda: "past_key_values" in parameters(tiny_model("llama").forward),
    "cache_params": lambda: "cache_params" in parameters(recurrent("mamba").backbone.forward),
    "layer_types": lambda: set(recurrent("mamba").config.layer_types) == {"linear_attention"},
    "state": lambda: "state" in parameters(recurrent("rwkv").rwkv.forward),
    "_pad_token_tensor": lambda: pads()[:2] == (7, True),
    "prompt_ignore_length": lambda: all(hasattr(one, "prompt_ignore_length") for one in pads()[2][:1]),
    "keys, values, is_initialized, update": lambda: layer().keys.shape == (2, 2, 4, 8)
    and layer().values.shape == (2, 2, 4, 8) and layer().is_initialized and callable(DynamicLayer.update),
    "layers, offloading, get_seq_length": lambda: len(internals.cache_of(tiny_model("llama")(IDS)).layers) == 3
    and not DynamicCache().offloading and internals.cache_of(tiny_model("llama")(IDS)).get_seq_length() == 4,
    "reorder_cache": lambda: callable(DynamicLayer.reorder_cache),
    "max_cache_len, is_sliding": lambda: static().layers[0].max_cache_len == 8 and static().layers[0].is_sliding is False,
    "is_compileable": lambda: static().is_compileable,
    "_compiled_call": lambda: "_compiled_call" in inspect.getsource(PreTrainedModel)
    or "_compiled_call" in inspect.getsource(GenerationMixin),
    "_attn_implementation, read_index, write_index, block_table": lambda: isinstance(
        tiny_model("llama").config._attn_implementation, str
    ),
    "DeferredStopCheck": lambda: hasattr(__import__("transformers").generation.utils, "DeferredStopCheck"),
}  # fmt: skip


def test_every_internal_has_a_check():
    assert CHECKS.keys() == {one.name for one in INTERNALS} and len(CHECKS) == len(INTERNALS)
    assert all(one.use and one.where for one in INTERNALS)


@pytest.mark.parametrize("one", INTERNALS, ids=lambda one: one.name)
def test_each_stands_in_the_versions_that_are_said(one):
    first, last = Version(one.since or "0"), Version(one.until or "1000")
    assert CHECKS[one.name]() is (first <= VERSION <= last), f"{one.name} of {one.where}: {one.use}"


def test_a_cache_is_found_under_any_name_and_by_nothing_else(llama):
    cache = internals.cache_of(llama(IDS))
    assert cache.get_seq_length() == 4
    assert internals.find_cache(({"a": 1}, IDS, None, cache)) is cache and internals.find_cache((IDS, None, "past")) is None
    assert internals.cache_of(llama(IDS, use_cache=False)) is None
    assert internals.given_cache({"past_key_values": None, "cache": cache}) is cache
    assert internals.given_cache({"past_key_values": cache}) is cache and internals.given_cache({}) is None
    assert internals.without_cache({"cache": cache, "past_key_values": cache, "use_cache": True}) == {"use_cache": True}


def test_outputs_that_are_no_mapping_have_their_cache_found_by_either_name():
    class Outputs:
        pass

    for name in CACHE_NAMES:
        outputs = Outputs()
        setattr(outputs, name, "kept")
        assert internals.cache_of(outputs) == "kept"
    assert internals.cache_of(Outputs()) is None
    assert internals.cache_of(CausalLMOutputWithPast(logits=IDS)) is None


def test_the_cache_goes_in_under_the_name_that_the_model_takes():
    class Old(nn.Module):
        def prepare_inputs_for_generation(self, input_ids, past_key_values=None, **kwargs): ...

    class Open(nn.Module):
        def prepare_inputs_for_generation(self, *args, **kwargs): ...

    assert internals.cache_name(type(tiny_model("llama"))) == NAME
    assert internals.cache_name(Old) == "past_key_values"  # code of a repository's own, from before the new name
    assert internals.cache_name(Open) == NAME and internals.cache_name(nn.Linear) == NAME


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text", "jamba", "lfm2", "qwen3_next"])
def test_a_step_after_the_prefill_is_the_forward_call_on_the_whole(name):
    model = tiny_model(name)
    config = GenerationConfig(max_new_tokens=3, pad_token_id=0)
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    steps = []

    def loop(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        out = internals.prefill(model, input_ids, generation_config, kwargs)
        arguments, cache = internals.next_arguments(model, out, kwargs), internals.cache_of(out)
        assert not set(CACHE_NAMES) & set(arguments)
        ids = torch.cat([input_ids, torch.tensor([[20], [21]])], dim=1)
        steps.append((model(**internals.next_inputs(model, ids, cache, arguments)).logits[:, -1], ids))
        return ids

    with torch.no_grad():
        model.generate(input_ids=IDS, attention_mask=mask, generation_config=config, custom_generate=loop)
        logits, ids = steps[0]
        mask = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], dim=1)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        named = {"position_ids": positions} if "position_ids" in parameters(model.forward) else {}
        expected = model(ids, attention_mask=mask, **named).logits[:, -1]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_recurrent_models_are_named_and_hybrid_ones_are_not():
    assert internals.other_past(recurrent("mamba").backbone) == "cache_params"
    assert internals.other_past(recurrent("rwkv").rwkv) == "state"
    for name in ("jamba", "qwen3_next", "lfm2", "llama"):
        assert internals.other_past(tiny_model(name).model) is None


def test_a_cache_of_a_models_own_kind_is_named():
    class OwnCache:
        pass

    class Own(nn.Module):
        def forward(self, input_ids, cache: OwnCache | None = None): ...

    class Usual(nn.Module):
        def forward(self, input_ids, cache: DynamicCache | None = None): ...

    class Untold(nn.Module):
        def forward(self, input_ids, cache=None): ...

    assert internals.other_past(Own()) == "OwnCache"
    assert internals.other_past(Usual()) is None and internals.other_past(Untold()) is None


def test_generate_runs_on_the_model_inside_a_wrapper():
    model = tiny_model("llama")
    wrapper = nn.Sequential(model)
    assert internals.runs_generate((wrapper, model, model.model)) is model
    assert internals.runs_generate((wrapper,)) is None


def test_a_generate_of_a_models_own_is_told_from_one_that_somebody_put_there():
    model = copy.deepcopy(tiny_model("llama"))
    assert not internals.generates_its_own_way(model)

    class Speaks(type(model)):
        def generate(self): ...

    Speaks.generate.__module__ = "transformers.models.speaks.modeling_speaks"
    assert internals.generates_its_own_way(Speaks(model.config))
    Speaks.generate.__module__ = "somebody"
    assert not internals.generates_its_own_way(Speaks(model.config))


def test_nothing_that_transformers_calls_deprecated_is_used_on_the_way(recwarn):
    model = tiny_model("llama")
    model.generate(
        IDS, custom_generate=BestOfNDecoding(make_rm(position="token"), n=2), do_sample=True, max_new_tokens=3, pad_token_id=0
    )
    said = [str(one.message) for one in recwarn if "deprecated" in str(one.message)]
    assert not said
