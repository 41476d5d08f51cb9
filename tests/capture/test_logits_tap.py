import pytest
import torch
from transformers import AutoModel

from swift_rm.capture.logits_tap import LogitsTap, open_tap
from swift_rm.capture.tap import HiddenStateTap
from swift_rm.models.model_shape import output_width
from swift_rm.reward.config import SwiftConfig
from swift_rm.reward.identity import check_base_model
from tests.generate_calls import greedy, hooks, padded_batch
from tests.tiny_models import ARCHITECTURES, HIDDEN, LAYERS, VOCAB, tiny_model

RAW = {"return_dict_in_generate": True, "output_logits": True, "disable_compile": True}


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "openai-gpt"])  # it has no cache
@torch.no_grad()
def test_logits_are_those_of_the_model_in_forward_and_generate(name):
    model, inputs, calls = tiny_model(name), padded_batch(), []
    with LogitsTap(model) as tap:
        model(**inputs)
    assert torch.equal(tap.states[-1], model(**inputs).logits)
    with LogitsTap(model, (LAYERS,), on_forward=calls.append) as tap:
        tokens = greedy(model, inputs, repetition_penalty=1.5, use_cache=True)
    expected = greedy(model, inputs, repetition_penalty=1.5, use_cache=True, output_scores=True, **RAW)
    assert torch.equal(tokens, expected.sequences)
    assert not torch.equal(torch.stack(expected.logits), torch.stack(expected.scores)), "a penalty that changes nothing"
    for call, logits in zip(calls, expected.logits, strict=True):
        assert torch.equal(call[LAYERS][:, -1], logits)
    assert torch.equal(tap.states[LAYERS][:, -len(calls) :], torch.stack(expected.logits, dim=1))
    assert torch.equal(tap.last[LAYERS][:, -1], expected.logits[-1])
    assert hooks(model) == 0
    assert output_width(model) == VOCAB


@torch.no_grad()
def test_tuples_chunks_and_nothing_kept():
    model, inputs, calls = tiny_model("llama"), padded_batch(), []
    with LogitsTap(model, keep=False, on_forward=calls.append) as tap:
        model(**inputs, return_dict=False)
        greedy(model, padded_batch((7,), seed=1), prefill_chunk_size=3)
        with pytest.raises(RuntimeError, match="keep=False"):
            _ = tap.states
    assert torch.equal(calls[0][-1], model(**inputs).logits)
    assert [call[-1].shape[-1] for call in calls[1:]] == [VOCAB] * 7


def test_the_refusals_are_those_of_hidden_states():
    model = tiny_model("llama")
    compiled = tiny_model("llama")
    compiled.compile(backend="eager")
    with pytest.raises(RuntimeError, match="LlamaForCausalLM is compiled"), LogitsTap(compiled):
        pass
    with pytest.raises(RuntimeError, match="the cache was cut back"), LogitsTap(model):
        model.generate(torch.tensor([[5, 6, 7, 5, 6, 7, 5, 6]]), prompt_lookup_num_tokens=3, max_new_tokens=12)
    with pytest.raises(RuntimeError, match="attached already"), LogitsTap(model) as tap, tap:
        pass
    with pytest.raises(ValueError, match=r"after the last layer, -1, not after the layers \(0,\)"):
        LogitsTap(model, (0,))
    with pytest.raises(ValueError, match="no layer 9"):
        LogitsTap(model, (9,))
    assert hooks(model) == 0


@torch.no_grad()
def test_blocks_that_run_without_their_logits_are_noticed():
    model = tiny_model("llama")
    with LogitsTap(model) as tap:
        model.model(torch.tensor([[5, 6]]))
        with pytest.raises(RuntimeError, match="no output logits came of it"):
            model(torch.tensor([[5, 6]]))
        tap.clear()
        model(torch.tensor([[5, 6]]))
        assert tap.states[-1].shape == (1, 2, VOCAB)


def test_a_model_without_output_logits_is_refused_by_name():
    bare = AutoModel.from_config(tiny_model("llama").config)
    for refused in (lambda: LogitsTap(bare), lambda: check_base_model(SwiftConfig.of_top_logprobs(2), bare)):
        with pytest.raises(ValueError, match="LlamaModel has no output logits: load the model with AutoModelForCausalLM"):
            refused()


@torch.no_grad()
def test_one_place_opens_the_tap_of_a_source():
    model, inputs = tiny_model("llama"), padded_batch()
    assert type(open_tap(model, "hidden", (0,))) is HiddenStateTap
    for source in ("logits", "top_logprobs"):
        with open_tap(model, source, (LAYERS,)) as tap:
            model(**inputs)
        assert tap.states[LAYERS].shape == (2, 9, VOCAB)
    with open_tap(model, "hidden", (LAYERS,)) as tap:
        model(**inputs)
    assert tap.states[LAYERS].shape == (2, 9, HIDDEN)
