import os
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from swift_rm import BestOfNDecoding, SwiftConfig, SwiftRewardModel
from swift_rm.decoding.custom_generate import BestOfNOutput
from swift_rm.models.load import ASSETS, TINY, TINY_REWARD, load_language_model
from tests.tiny_models import older_than

FOLDER = Path(__file__).parents[2] / "examples" / "custom_generate_swift"
SETTINGS = {"max_new_tokens": 16, "return_dict_in_generate": True}


@pytest.fixture(scope="module")
def loaded():
    return load_language_model(device="cpu", progress=False)


@pytest.fixture(scope="module")
def rm():
    return SwiftRewardModel.from_pretrained(ASSETS / TINY_REWARD)


@pytest.fixture(autouse=True)
def modules(monkeypatch, tmp_path):
    """transformers copies the code it runs: not among the user's."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))


def inputs_of(tokenizer):
    chats = [[{"role": "user", "content": question}] for question in ("27+15", "82-51+77")]
    return tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_dict=True, return_tensors="pt", padding=True)


def generate(loaded, decoding, **settings):
    model, tokenizer = loaded
    torch.manual_seed(0)
    return model.generate(**inputs_of(tokenizer), custom_generate=decoding, **{**SETTINGS, **settings})


def from_folder(loaded, **settings):
    return generate(loaded, str(FOLDER), trust_remote_code=True, **settings)


@pytest.mark.parametrize("given", ["name", "folder", "loaded"])
def test_the_folder_generates_as_the_object_does(loaded, rm, given):
    reward_model = {"name": TINY_REWARD, "folder": str(ASSETS / TINY_REWARD), "loaded": rm}[given]
    found = from_folder(loaded, reward_model=reward_model, n=5, num_return_sequences=2)
    expected = generate(loaded, BestOfNDecoding(rm, 5), do_sample=True, num_return_sequences=2)
    assert isinstance(found, BestOfNOutput)
    assert torch.equal(found.sequences, expected.sequences)
    assert torch.equal(found.rewards, expected.rewards)
    assert [len(candidates) for candidates in found.candidates] == [5, 5]
    assert len({tuple(one.token_ids) for one in found.candidates[1]}) > 1, "nothing was sampled"


def test_a_reward_model_that_was_trained_anew_is_read_anew(loaded, rm, tmp_path):
    folder = tmp_path / "rm"
    rm.save_pretrained(folder)
    before = from_folder(loaded, reward_model=str(folder), n=2).rewards
    changed = SwiftRewardModel.from_pretrained(folder)
    changed.head.bias.data += 1
    changed.save_pretrained(folder)
    os.utime(folder / "model.safetensors", ns=(2**60, 2**60))  # a clock may be too coarse to tell
    assert not torch.allclose(from_folder(loaded, reward_model=str(folder), n=2).rewards, before)


def test_rules_and_pruning_are_handed_on(loaded, rm):
    settings = {"select": "majority", "prune": "halving", "tokenizer": loaded[1]}
    found = from_folder(loaded, reward_model=TINY_REWARD, n=12, **settings, max_new_tokens=24)
    expected = generate(loaded, BestOfNDecoding(rm, 12, **settings), do_sample=True, max_new_tokens=24)
    assert torch.equal(found.sequences, expected.sequences)
    assert [[one.finish_reason for one in group] for group in found.candidates] == [
        [one.finish_reason for one in group] for group in expected.candidates
    ]
    assert any(one.finish_reason == "pruned" for group in found.candidates for one in group)


def test_a_configuration_of_generation_says_whether_to_sample(loaded, rm):
    config = GenerationConfig(do_sample=True, temperature=0.5, max_new_tokens=6, eos_token_id=2, pad_token_id=0)
    found = from_folder(loaded, reward_model=TINY_REWARD, n=3, generation_config=config, max_new_tokens=6)
    expected = generate(loaded, BestOfNDecoding(rm, 3), generation_config=config, max_new_tokens=6)
    assert torch.equal(found.sequences, expected.sequences)
    config.do_sample = False
    with pytest.raises(ValueError, match="greedy decoding gives 3 equal responses"):
        from_folder(loaded, reward_model=TINY_REWARD, n=3, generation_config=config)


def test_a_model_that_brings_the_folder_generates_so_by_itself(loaded, rm, tmp_path):
    own = tmp_path / "model"
    shutil.copytree(ASSETS / TINY, own)
    shutil.copytree(FOLDER / "custom_generate", own / "custom_generate")
    model = AutoModelForCausalLM.from_pretrained(own, trust_remote_code=True).eval()
    torch.manual_seed(0)
    found = model.generate(**inputs_of(loaded[1]), reward_model=TINY_REWARD, n=4, **SETTINGS)
    assert torch.equal(found.sequences, generate(loaded, BestOfNDecoding(rm, 4), do_sample=True).sequences)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({}, ValueError, "say which reward model is to choose"),
        ({"reward_model": "./nowhere"}, FileNotFoundError, "no reward model folder at nowhere"),
        ({"reward_model": TINY_REWARD, "n": 0}, ValueError, "n must be at least 1, got 0"),
        ({"reward_model": TINY_REWARD, "select": "bset"}, ValueError, "unknown selection rule 'bset'"),
        ({"reward_model": TINY_REWARD, "do_sample": False}, ValueError, "greedy decoding gives 16 equal responses"),
        ({"reward_model": TINY_REWARD, "num_beams": 2}, ValueError, "num_beams='2' is not supported"),
        ({"reward_model": TINY_REWARD, "temprature": 2.0}, ValueError, "temprature"),
        ({"reward_model": SwiftRewardModel(SwiftConfig(32, (0,)))}, ValueError, "expected hidden states of width 32"),
    ],
)
def test_bad_input_is_told(loaded, settings, error, message):
    with pytest.raises(error, match=message):
        from_folder(loaded, **settings)


@pytest.mark.skipif(older_than("5.12"), reason="transformers trusts every folder of this machine before 5.12")
def test_nothing_runs_without_trust(loaded):
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        generate(loaded, str(FOLDER), reward_model=TINY_REWARD, trust_remote_code=False)


def test_the_folder_is_what_transformers_and_the_hub_look_for():
    assert "- custom_generate\n" in (FOLDER / "README.md").read_text().split("---")[1]
    assert (FOLDER / "custom_generate/requirements.txt").read_text() == "swift-rm\n"
