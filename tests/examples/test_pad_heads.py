import sys

import pytest
import torch
from graded_corpus import make_tokenizer
from pad_heads import main, pad_heads
from tiny_reasoner import grown
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from swift_rm.models.load import TINY, TINY_2, TINY_THINKER, load_language_model
from tests.tiny_models import HIDDEN, tiny_model

TOLERANCE = {torch.float32: {"rtol": 1e-4, "atol": 1e-4}, torch.float64: {"rtol": 1e-10, "atol": 1e-12}}

# new size, then what differs from 4 query and 2 key heads of size 8, base 10000, no biases, untied
SHAPES = {
    "as the embedded": (32, {"head_dim": 24, "num_key_value_heads": 4, "rope_theta": 1000.0, "tie_word_embeddings": True}),
    "grouped": (16, {}),
    "one key head": (12, {"head_dim": 10, "num_key_value_heads": 1, "rope_theta": 500000.0}),
    "biases": (24, {"head_dim": 14, "attention_bias": True, "mlp_bias": True}),
    "every other dimension new": (4, {"head_dim": 2}),
}


def llama(dtype=torch.float32, rope_theta=10000.0, **overrides):
    """A Llama whose attention looks far and sharply, with nothing zero, so that whatever is misplaced shows."""
    rope = {"rope_type": "default", "rope_theta": rope_theta}
    model = tiny_model("llama", **{"head_dim": 8, "rope_parameters": rope, "dtype": dtype, **overrides})
    torch.manual_seed(3)
    for parameter in model.parameters():
        parameter.data.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.3)
    return model


def states(model):
    """Logits and all hidden states of two rows of 80 tokens, the second of them padded on the left."""
    ids = torch.randint(3, model.config.vocab_size, (2, 80), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    mask[1, :30] = 0
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    return [part[mask.bool()] for part in (out.logits, *out.hidden_states)]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_padded_model_has_the_same_logits_and_hidden_states(shape, dtype):
    size, overrides = SHAPES[shape]
    model = llama(dtype, **overrides)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.generation_config.top_k, old = 7, model.config.head_dim
    expected, padded = states(model), pad_heads(model, size)
    assert padded.config.head_dim == size and padded.model.layers[0].self_attn.head_dim == size
    assert (padded.config.tie_word_embeddings, padded.dtype, padded.training) == (model.config.tie_word_embeddings, dtype, False)
    assert padded.generation_config.to_dict() == model.generation_config.to_dict()
    shared = padded.lm_head.weight is padded.model.embed_tokens.weight
    assert shared == model.config.tie_word_embeddings
    rotary, wider = model.model.rotary_emb, padded.model.rotary_emb
    torch.testing.assert_close(wider.inv_freq[: old // 2], rotary.inv_freq, rtol=1e-6, atol=0)
    if dtype == torch.float64:  # transformers computes frequencies in float32: these are to the bit those of the original
        wider.inv_freq[: old // 2] = rotary.inv_freq
    made = states(padded)
    assert len(made) == model.config.num_hidden_layers + 2
    for ours, theirs in zip(made, expected, strict=True):
        torch.testing.assert_close(ours, theirs, **TOLERANCE[dtype])
    assert model.config.head_dim == old and all(torch.equal(before[name], now) for name, now in model.state_dict().items())


def test_the_attention_of_these_models_depends_on_place_and_scale():
    """Or the test above would see neither a wrong base nor a forgotten scale."""
    for change in ({"rope_theta": 8000.0}, {"num_key_value_heads": 1}):
        assert not torch.allclose(states(llama())[0], states(llama(**change))[0], rtol=0.01, atol=0.01)
    model, expected = llama(), states(llama())[0]
    for layer in model.model.layers:
        layer.self_attn.scaling *= 0.9
    assert not torch.allclose(states(model)[0], expected, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_padded_model_generates_the_same_with_and_without_a_cache(shape):
    size, overrides = SHAPES[shape]
    model = llama(torch.float64, **overrides)
    ids = torch.randint(3, model.config.vocab_size, (3, 7), generator=torch.Generator().manual_seed(6))
    settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 40, "min_new_tokens": 40, "do_sample": False}
    expected = model.generate(ids, use_cache=True, **settings)
    for cached in (True, False):
        assert torch.equal(pad_heads(model, size).generate(ids, use_cache=cached, **settings), expected)
    assert len(set(expected[:, 7:].flatten().tolist())) > 10


def test_a_model_in_half_precision_stays_one_and_is_as_close_as_its_weights():
    model = llama(torch.bfloat16)
    padded = {size: pad_heads(model, size) for size in (12, 32)}
    assert {p.dtype for one in padded.values() for p in one.parameters()} == {torch.bfloat16} == {padded[12].config.dtype}
    exact = llama()
    exact.load_state_dict(model.state_dict())
    expected, wider = states(exact)[0], {}
    for size, one in padded.items():
        wider[size] = pad_heads(exact, size)
        wider[size].load_state_dict(one.state_dict())
    errors = {size: float((states(one)[0] - expected).norm() / expected.norm()) for size, one in wider.items()}
    assert 1e-4 < errors[12] < 0.02, "queries times sqrt(1.5) are rounded to bfloat16"
    assert errors[32] < 1e-5, "queries doubled are not"


def test_heads_of_this_size_are_left_as_they_are():
    model = llama()
    assert pad_heads(model, 8) is model


@pytest.mark.parametrize(
    ("overrides", "size", "message"),
    [
        ({}, 6, "not those of 8 to 6"),
        ({}, 9, "not those of 8 to 9"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, 16, "of type linear; only those of"),
    ],
)
def test_a_size_or_rotary_embeddings_that_cannot_be_padded_are_refused(overrides, size, message):
    model = tiny_model("llama", **{"head_dim": 8, **overrides})
    with pytest.raises(ValueError, match=message):
        pad_heads(model, size)


def test_another_model_and_quantised_weights_are_refused(tmp_path, monkeypatch, capsys):
    with pytest.raises(ValueError, match="but this is a MistralForCausalLM"):
        pad_heads(tiny_model("mistral"), 16)
    config = LlamaConfig(hidden_size=16, num_hidden_layers=1, intermediate_size=8, num_attention_heads=4, vocab_size=9)
    with pytest.raises(ValueError, match="but this is a LlamaForSequenceClassification"):
        pad_heads(LlamaForSequenceClassification(config), 8)
    quantised = llama()
    quantised.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    with pytest.raises(ValueError, match="weights are quantised"):
        pad_heads(quantised, 16)
    for name, model in (("mistral", tiny_model("mistral")), ("classifier", LlamaForSequenceClassification(config))):
        model.save_pretrained(tmp_path / name)
        assert f"but this is a {type(model).__name__}" in refused(monkeypatch, capsys, tmp_path / name, 16)


def command(monkeypatch, folder, size, *arguments):
    monkeypatch.setattr(sys, "argv", ["pad_heads.py", str(folder), "--head-size", str(size), *map(str, arguments)])
    main()


def refused(monkeypatch, capsys, folder, size, *arguments):
    kept = contents(folder) if folder.is_dir() else None
    with pytest.raises(SystemExit) as stopped:
        command(monkeypatch, folder, size, *arguments)
    assert stopped.value.code == 2 and (contents(folder) if folder.is_dir() else None) == kept
    return capsys.readouterr().err.splitlines()[-1]


def contents(folder):
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


@pytest.fixture
def folder(tmp_path, tokenizer):
    """A folder with all that a model comes with, its generation settings not those of its config."""
    model = llama(vocab_size=len(tokenizer), tie_word_embeddings=True)
    model.generation_config.temperature, model.generation_config.do_sample = 0.7, True
    for one in (model, tokenizer):
        one.save_pretrained(tmp_path / "lm")
    (tmp_path / "lm" / "README.md").write_text("a card")
    return tmp_path / "lm"


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_command_pads_a_folder_in_place_or_elsewhere(folder, elsewhere, monkeypatch, capsys):
    before, model = contents(folder), AutoModelForCausalLM.from_pretrained(folder)
    out = folder.parent / "wider" if elsewhere else folder
    command(monkeypatch, folder, 16, *(["--out", out] if elsewhere else []))
    assert capsys.readouterr().out == f"{out}: heads of size 8 are now of size 16\n"
    after = contents(out)
    changed = {name for name in after if after[name][1] != before[name][1]}
    assert changed == {"config.json", "model.safetensors"} and after.keys() == before.keys()
    assert not elsewhere or contents(folder) == before
    padded = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert padded.generation_config.temperature == 0.7 and padded.config.head_dim == 16
    assert AutoTokenizer.from_pretrained(out).get_vocab() == AutoTokenizer.from_pretrained(folder).get_vocab()
    for ours, theirs in zip(states(padded), states(model), strict=True):
        torch.testing.assert_close(ours, theirs, **TOLERANCE[torch.float32])
    command(monkeypatch, out, 16)
    assert contents(out) == after and "already" in capsys.readouterr().out, "the second time there is nothing to do"


def test_the_command_says_what_is_wrong_and_writes_nothing(folder, tmp_path, monkeypatch, capsys):
    assert "not those of 8 to 6" in refused(monkeypatch, capsys, folder, 6)
    assert f"{tmp_path / 'none'} is no folder" in refused(monkeypatch, capsys, tmp_path / "none", 16)
    assert f"{tmp_path} exists already" in refused(monkeypatch, capsys, folder, 16, "--out", tmp_path)
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 1
    assert "no model.safetensors" in refused(monkeypatch, capsys, tmp_path / "shards", 16)
    command(monkeypatch, tmp_path / "shards", 16, "--out", tmp_path / "one")
    assert {path.name for path in (tmp_path / "one").glob("*model*")} == {"model.safetensors"}
    made, expected = (AutoModelForCausalLM.from_pretrained(path) for path in (tmp_path / "one", folder))
    torch.testing.assert_close(states(made)[0], states(expected)[0], **TOLERANCE[torch.float32])


def test_a_padded_model_can_grow(tokenizer):
    bigger = grown(pad_heads(llama(vocab_size=len(tokenizer), tie_word_embeddings=True), 16), 2, make_tokenizer(("x", "y")))
    assert (bigger.config.num_hidden_layers, bigger.model.layers[-1].self_attn.q_proj.out_features) == (5, 4 * 16)
    expected = states(pad_heads(llama(vocab_size=len(tokenizer), tie_word_embeddings=True), 16))
    assert bigger.config.hidden_size == HIDDEN and bigger.config.vocab_size == len(tokenizer) + 2
    ids = torch.randint(3, len(tokenizer), (2, 80), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        made = bigger(input_ids=ids).logits[0, :, : len(tokenizer)]
    torch.testing.assert_close(made, expected[0][:80], **TOLERANCE[torch.float32])


@pytest.mark.parametrize("name", [TINY, TINY_2, TINY_THINKER])
def test_the_embedded_models_were_trained_with_heads_of_24_and_padded_to_32(name):
    model, _ = load_language_model(name)
    assert (model.config.head_dim, model.config.rope_parameters["rope_theta"]) == (32, 10000.0)
    for layer in model.model.layers:
        attention = layer.self_attn
        for rows in (attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight, attention.o_proj.weight.T):
            halves = rows.unflatten(0, (4, 2, 16)).abs().amax(-1)
            assert halves[:, :, 12:].max() == 0 < halves[:, :, :12].min()
