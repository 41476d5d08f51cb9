from __future__ import annotations

import pytest
import torch

from swift_rm.hipo import Template
from swift_rm.hipo.response.tags import add_tags, check_tags, missing_tags
from swift_rm.models.load import load_language_model
from tests.tiny_models import tiny_model

OWN = Template(("<why>", "</why>"))


@pytest.fixture
def tokenizer():
    return load_language_model(progress=False)[1]


def model_of(size, **config):
    torch.manual_seed(0)
    return tiny_model("llama", vocab_size=size, **config)


def test_the_tiny_reasoner_has_every_tag(tokenizer):
    assert missing_tags(tokenizer, Template()) == ()
    check_tags(tokenizer, Template())


def test_missing_tags_are_named_with_the_way_to_add_them(tokenizer):
    assert missing_tags(tokenizer, OWN) == ("<why>", "</why>")
    with pytest.raises(ValueError, match=r"no single token for <why>, </why>: add them.*add_tags\(model, tokenizer, template\)"):
        check_tags(tokenizer, OWN)


@pytest.mark.parametrize("tied", [True, False])
def test_added_tags_are_plain_tokens_at_the_mean_of_the_old(tokenizer, tied):
    model = model_of(len(tokenizer), tie_word_embeddings=tied)
    before = [model.get_input_embeddings().weight.clone(), model.get_output_embeddings().weight.clone()]
    assert add_tags(model, tokenizer, OWN) == 2
    assert missing_tags(tokenizer, OWN) == () and add_tags(model, tokenizer, OWN) == 0
    ids = tokenizer("<why>1</why>", add_special_tokens=False)["input_ids"]
    assert len(ids) == 3 and ids[0] == 40 and ids[2] == 41
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<why>1</why>"
    assert model.config.vocab_size == 42
    for old, layer in zip(before, (model.get_input_embeddings(), model.get_output_embeddings()), strict=True):
        assert layer.weight.shape == (42, old.shape[1]) and torch.equal(layer.weight[:40], old)
        torch.testing.assert_close(layer.weight[40:], old.mean(0).expand(2, -1))
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    parsed = OWN.parse(tokenizer("<why>1</why><think_off><answer>2</answer><eos>")["input_ids"], tokenizer)
    assert parsed.formatted and parsed.judge == "1"


def test_a_vocabulary_with_room_is_not_resized(tokenizer):
    """Rows that pad a vocabulary are nobody's: the new tags take them, and the mean leaves them out."""
    model = model_of(64)
    old = model.get_input_embeddings().weight.clone()
    assert add_tags(model, tokenizer, OWN) == 2
    weight = model.get_input_embeddings().weight
    assert weight.shape[0] == 64 and torch.equal(weight[42:], old[42:])
    torch.testing.assert_close(weight[41], old[:40].mean(0))
