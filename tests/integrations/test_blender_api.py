import os
import shutil

import pytest
import torch

from swift_rm import SwiftConfig, SwiftRewardModel, best_of_n, score
from swift_rm.integrations import model_cache
from swift_rm.integrations.blender_api import best_of_n_generate, forget, rank
from swift_rm.models.load import ASSETS, TINY, TINY_2, TINY_REWARD, load_language_model

QUESTIONS = ["27+15", "82-51+77"]
MESSAGES = [[{"role": "user", "content": question}] for question in QUESTIONS]
CANDIDATES = [["42", "32", "27+15=42", "32"], ["82-51=31, 31+77=08, so 08"]]
SETTINGS = {"max_new_tokens": 24, "seed": 3}


@pytest.fixture(scope="module")
def loaded():
    return load_language_model(device="cpu", progress=False)


@pytest.fixture(scope="module")
def rm():
    return SwiftRewardModel.from_pretrained(ASSETS / TINY_REWARD)


@pytest.fixture
def loads(monkeypatch):
    """What was loaded, from nothing."""
    seen = []

    def counting(name, **how):
        seen.append((name, how))
        assert not model_cache._language, "two language models are in memory at once"
        return load_language_model(name, **how)

    forget()
    monkeypatch.setattr(model_cache, "load_language_model", counting)
    yield seen
    forget()


def test_one_line_gives_the_best_texts(loads, loaded, rm):
    expected = [result.best.text for result in best_of_n(*loaded, rm, MESSAGES, n=6, **SETTINGS)]
    assert best_of_n_generate(TINY, MESSAGES, reward_model=TINY_REWARD, n=6, device="cpu", **SETTINGS) == expected
    folders = {"model": str(ASSETS / TINY), "reward_model": str(ASSETS / TINY_REWARD)}
    assert best_of_n_generate(prompts=MESSAGES, n=6, device="cpu", **folders, **SETTINGS) == expected
    assert len(loads) == 1, "a folder by another name was loaded again"
    assert best_of_n_generate(loaded[0], MESSAGES, reward_model=rm, n=6, tokenizer=loaded[1], **SETTINGS) == expected
    assert best_of_n_generate(loaded[0], MESSAGES, reward_model=rm, n=6, **SETTINGS) == expected
    rule = {"select": "majority", "answer": lambda text: text[:1]}
    expected = [result.best.text for result in best_of_n(*loaded, rm, MESSAGES, n=6, **rule, **SETTINGS)]
    assert best_of_n_generate(TINY, MESSAGES, reward_model=TINY_REWARD, n=6, device="cpu", **rule, **SETTINGS) == expected


@pytest.mark.parametrize("inputs", [QUESTIONS, MESSAGES])
def test_candidates_are_ranked_by_their_rewards(loads, loaded, rm, inputs):
    found = rank(TINY, inputs, CANDIDATES, reward_model=TINY_REWARD)
    for prompt, candidates, ranks in zip(inputs, CANDIDATES, found, strict=True):
        rewards = score(*loaded, rm, [prompt] * len(candidates), candidates)
        order = sorted(set(candidates), key=lambda text: -rewards[candidates.index(text)])
        assert order == sorted(set(candidates), key=lambda text: ranks[candidates.index(text)])
        assert min(ranks) == 1
    assert found[0][1] == found[0][3], "equal candidates should share a rank"
    assert sorted(found[0]) in ([1, 1, 3, 4], [1, 2, 2, 4], [1, 2, 3, 3])
    assert found[1] == [1]


def test_token_ids_are_ranked_too(loads, loaded):
    ids = [[loaded[1](text, add_special_tokens=False)["input_ids"] + [2] for text in some] for some in CANDIDATES]
    assert rank(TINY, MESSAGES, ids, reward_model=TINY_REWARD) == rank(TINY, MESSAGES, CANDIDATES, reward_model=TINY_REWARD)
    off = {"chat_template_kwargs": {"enable_thinking": False}}
    assert rank(TINY, MESSAGES, CANDIDATES, reward_model=TINY_REWARD, **off)[1] == [1]
    assert rank(TINY, [], [], reward_model=TINY_REWARD) == []


def test_models_are_loaded_once_and_let_go(loads):
    for _ in range(2):
        rank(TINY, MESSAGES, CANDIDATES, reward_model=TINY_REWARD)
    assert best_of_n_generate(TINY, MESSAGES, reward_model=TINY_REWARD, n=1, **SETTINGS)
    first = model_cache.cached_models(TINY, TINY_REWARD)
    assert all(one is other for one, other in zip(first, model_cache.cached_models(TINY, TINY_REWARD), strict=True))
    assert len(loads) == 1
    assert model_cache.cached_models(TINY, TINY_REWARD, dtype="bfloat16")[0].dtype == torch.bfloat16
    assert model_cache.cached_models(TINY_2, TINY_REWARD)[0].config.num_hidden_layers == 6
    assert [name for name, _ in loads] == [TINY, TINY, TINY_2]
    forget()
    assert model_cache.cached_models(TINY_2, TINY_REWARD)[2] is not first[2]
    assert len(loads) == 4


def test_a_folder_that_changed_is_loaded_again(loads, tmp_path):
    folder = tmp_path / "rm"
    shutil.copytree(ASSETS / TINY_REWARD, folder)
    before = model_cache.cached_models(TINY, str(folder))[2]
    changed = SwiftRewardModel.from_pretrained(folder)
    changed.head.bias.data += 1
    changed.save_pretrained(folder)
    os.utime(folder / "model.safetensors", ns=(2**60, 2**60))  # a clock may be too coarse to tell
    after = model_cache.cached_models(TINY, str(folder))[2]
    assert torch.equal(after.head.bias, before.head.bias + 1)


def test_a_model_that_is_given_is_used_and_not_kept(loads, loaded, rm):
    model, tokenizer, same = model_cache.cached_models(loaded[0], rm, tokenizer=loaded[1])
    assert (model, tokenizer, same) == (*loaded, rm)
    assert not model_cache._language
    own = model_cache.cached_models(loaded[0], rm)[1]
    assert own.get_vocab() == tokenizer.get_vocab()
    assert model_cache.cached_models(loaded[0], rm)[1] is own
    assert loads == []


@pytest.mark.parametrize(
    ("inputs", "candidates", "message"),
    [
        (QUESTIONS, CANDIDATES[:1], "got 2 inputs and 1 lists"),
        (QUESTIONS, ["42", "08"], r"expected a list of inputs and a list of candidates for each, got \['27\+15', "),
        ("27+15", [["42"]], "expected a list of inputs"),
        (QUESTIONS, [["42"], []], "input 1 has no candidates to rank"),
        (QUESTIONS, [["42"], [""]], "is empty: it has no token to score"),
    ],
)
def test_what_cannot_be_ranked_is_told(loads, inputs, candidates, message):
    with pytest.raises(ValueError, match=message):
        rank(TINY, inputs, candidates, reward_model=TINY_REWARD)


def test_bad_models_and_settings_are_told(loads, loaded, llama, rm):
    for change, message in (
        ({"model": TINY_2}, "with 4 layers, but tiny-reasoner-2 has 6"),
        ({"reward_model": SwiftRewardModel(SwiftConfig(32, (0,)))}, "expected hidden states of width 32"),
        ({"n": 0}, "n and batch_size must be at least 1, got 0"),
        ({"prompts": []}, "at least one prompt"),
        ({"model": loaded[0], "device": "cpu"}, "device='cpu' and dtype=None are for a model given by name"),
        ({"model": llama, "reward_model": rm}, "needs its tokenizer: give tokenizer="),
        ({"dtype": "float31"}, "dtype must be one of torch's"),
    ):
        with pytest.raises(ValueError, match=message):
            best_of_n_generate(**({"model": TINY, "prompts": MESSAGES, "reward_model": TINY_REWARD, **SETTINGS} | change))
    with pytest.raises(FileNotFoundError, match="no reward model folder at nowhere"):
        best_of_n_generate(TINY, MESSAGES, reward_model="./nowhere")
    with pytest.raises(OSError, match="nowhere"):
        best_of_n_generate("./nowhere", MESSAGES, reward_model=TINY_REWARD)
    with pytest.raises(TypeError, match="reward_model"):
        best_of_n_generate(TINY, MESSAGES)
