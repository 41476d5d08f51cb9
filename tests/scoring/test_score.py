import math
import weakref
from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from swift_rm import SwiftConfig, SwiftRewardModel, score
from swift_rm.capture.tap import HiddenStateTap
from swift_rm.reward.identity import describe_base, fingerprint
from tests.reward_models import by_the_formula
from tests.tiny_models import tiny_model


def reward_model(layers, hidden_size=32, seed=0, **config):
    rm = SwiftRewardModel(SwiftConfig(hidden_size, layers, **config))
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        for parameter in rm.parameters():
            parameter.normal_(generator=generator)
    return rm


def sequences(count=7, seed=0, vocabulary=40):
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        size = int(torch.randint(low, high, (1,), generator=generator))
        return torch.randint(3, vocabulary, (size,), generator=generator).tolist()

    return [draw(1, 9) for _ in range(count)], [draw(1, 12) for _ in range(count)]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text", "opt", "falcon"])
@pytest.mark.parametrize("position", ["generating", "token"])
@pytest.mark.parametrize(("layers", "gate"), [((0, 1, 2, 3), True), ((-1,), True), ((3, 1), False)])
@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_equals_the_formula_on_output_hidden_states(architecture, position, layers, gate, batch_size):
    model = tiny_model(architecture)
    rm = reward_model(layers, position=position, gate=gate)
    prompts, responses = sequences()
    rewards = score(model, None, rm, prompts, responses, batch_size=batch_size)
    expected = [by_the_formula(model, rm, p, r) for p, r in zip(prompts, responses, strict=True)]
    assert rewards == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_text_messages_and_ids_give_the_same_reward_whatever_the_padding_side(llama, tokenizer, side, monkeypatch):
    monkeypatch.setattr(tokenizer, "padding_side", side)
    rm = reward_model((0, 3))
    messages, response = [{"role": "user", "content": "27+15"}], "<think>27+15=42, </think><answer>42</answer>"
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    response_ids = [*tokenizer(response, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    rewards = score(llama, tokenizer, rm, [messages, text, prompt_ids], [response, response, response_ids])
    assert rewards[1:] == pytest.approx([rewards[0]] * 2, abs=1e-6)
    assert rewards[0] == pytest.approx(by_the_formula(llama, rm, prompt_ids, response_ids), abs=1e-5)


def test_the_region_after_a_marker_is_all_that_is_read(llama, tokenizer):
    after, whole = reward_model((1, 2), region="after:</think>"), reward_model((1, 2))
    prompt = tokenizer("<bos><question>27+15<student>")["input_ids"]
    thought, answer = (tokenizer(t)["input_ids"] for t in ("<think>27+15=42, </think>", "<answer>42</answer>"))
    one = score(llama, tokenizer, after, [prompt], [thought + answer])[0]
    assert one == pytest.approx(score(llama, tokenizer, whole, [prompt + thought], [answer])[0], abs=1e-6)
    unmarked = score(llama, tokenizer, after, [prompt], [answer])[0]  # the marker never comes: the whole response
    assert unmarked == pytest.approx(score(llama, tokenizer, whole, [prompt], [answer])[0], abs=1e-6)
    with pytest.raises(ValueError, match="response 1 has no token after the marker '</think>'"):
        score(llama, tokenizer, after, [prompt, prompt], [answer, thought])


@pytest.mark.parametrize(
    ("prompts", "responses", "message"),
    [
        ([[1, 2]], [[3], [4]], "got 1 and 2"),
        ([[1, 2], [1]], [[3], []], "response 1 is empty"),
        ([[]], [[3]], "response 0 has an empty prompt"),
        ([[1]], [[500]], "response 0 holds the token id 500, but the model has ids 0 to 100"),
        ([[1] * 40], [[3] * 40], "response 0 and its prompt have 80 tokens, but the model's context is 64"),
    ],
)
def test_what_cannot_be_scored_is_named(prompts, responses, message):
    with pytest.raises(ValueError, match=message):
        score(tiny_model("llama", max_position_embeddings=64), None, reward_model((1,)), prompts, responses)


def test_nan_states_are_named_by_layer_and_response():
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[17] = math.nan
    with pytest.raises(ValueError, match=r"response 1 has NaN or Inf in the states of layer 2 \(1 responses"):
        score(model, None, reward_model((2, 3)), [[5], [5, 17]], [[6, 7], [8, 9]])


def test_another_base_model_is_refused_and_both_are_named(llama, tokenizer):
    config = describe_base(SwiftConfig(32, (-1,), base_model="org/one"), llama, tokenizer)
    assert config.layers == (3,)
    assert config.fingerprint == fingerprint(tokenizer)
    wide = SwiftRewardModel(SwiftConfig(48, (-1,), base_model="org/one"))
    with pytest.raises(ValueError, match=r"width 48 .*trained on org/one.*has hidden size 32"):
        score(llama, tokenizer, wide, [[1]], [[2]])
    deep = SwiftRewardModel(replace(config, base_layers=9))
    with pytest.raises(ValueError, match=r"trained on org/one with 9 layers, but .* has 3"):
        score(llama, tokenizer, deep, [[1]], [[2]])
    other = SwiftRewardModel(replace(config, fingerprint="0123456789abcdef"))
    with pytest.raises(ValueError, match=r"org/one, whose vocabulary .* fingerprint 0123456789abcdef"):
        score(llama, tokenizer, other, [[1]], [[2]])
    outside = SwiftRewardModel(SwiftConfig(32, (4,)))
    with pytest.raises(ValueError, match="layer 4 is out of range"):
        score(llama, tokenizer, outside, [[1]], [[2]])


def test_models_known_by_their_hub_ids_are_compared_by_them(llama, monkeypatch):
    rm = SwiftRewardModel(SwiftConfig(32, (1,), base_model="org/one"))
    monkeypatch.setattr(llama.config, "_name_or_path", "org/two")
    monkeypatch.setattr(llama, "name_or_path", "org/two")
    with pytest.raises(ValueError, match="trained on org/one, but this is org/two"):
        score(llama, None, rm, [[1]], [[2]])


def test_scoring_leaves_no_hook_and_changes_no_parameter(llama):
    def hooks():
        return [(*m._forward_hooks, *m._forward_pre_hooks) for m in llama.modules()]

    before, hooked = {name: value.clone() for name, value in llama.state_dict().items()}, hooks()
    score(llama, None, reward_model((0, 1)), *sequences())
    assert hooks() == hooked
    assert all(torch.equal(before[name], value) for name, value in llama.state_dict().items())


def test_never_more_than_one_batch_of_states_is_alive(llama, monkeypatch):
    class Watched(HiddenStateTap):
        seen: ClassVar[list] = []

        def __enter__(self):
            assert not any(state() is not None for state in self.seen), "states of an earlier batch are still held"
            return super().__enter__()

        @property
        def states(self):
            states = super().states
            self.seen.extend(weakref.ref(state) for state in states.values())
            return states

    monkeypatch.setattr("swift_rm.capture.logits_tap.HiddenStateTap", Watched)
    score(llama, None, reward_model((0, 1, 3)), *sequences(12), batch_size=2)
    assert len(Watched.seen) == 6 * 3


def test_a_model_in_training_mode_is_scored_without_dropout_and_left_training():
    model = tiny_model("gpt2", resid_pdrop=0.5).train()
    rm = reward_model((1, 3))
    one, two = (score(model, None, rm, *sequences()) for _ in range(2))
    assert one == two
    assert model.training
