import math

import pytest
import torch

from swift_rm import SwiftConfig, SwiftRewardModel, score
from swift_rm.scoring.token_scoring import score_tokens, token_texts
from tests.tiny_models import tiny_model
from tests.tiny_tokenizers import OVERLAP, make_bytewise, make_sentencepiece

PROMPTS = [[5, 6, 7], [8], [9, 10], [11, 12, 13, 14]]
RESPONSES = [[20, 21, 22, 23], [24], [25, 26, 27, 28, 29, 30], [31, 32]]


def reward_model(layers=(0, 3), seed=0, **config):
    rm = SwiftRewardModel(SwiftConfig(32, layers, **config))
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        for parameter in rm.parameters():
            parameter.normal_(generator=generator)
    return rm


@torch.no_grad()
def by_the_formula(model, rm, prompt, response):
    """Gate and reward of each token of one unpadded sequence, read from output_hidden_states."""
    hidden = model(torch.tensor([prompt + response]), output_hidden_states=True).hidden_states
    start = len(prompt) - (rm.config.position == "generating")
    h = torch.cat([hidden[layer][0, start : start + len(response)] for layer in rm.config.layers], dim=-1)
    scores = h @ rm.head.weight.T + rm.head.bias
    gate = torch.sigmoid(scores[:, 0]) if rm.config.gate else torch.ones(len(h))
    return gate.tolist(), scores[:, -1].tolist()


@pytest.mark.parametrize("position", ["generating", "token"])
@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_each_token_has_the_numbers_of_its_own_state_and_they_add_up_to_the_score(position, gate, batch_size):
    model, rm = tiny_model("llama"), reward_model(position=position, gate=gate)
    scored = score_tokens(model, None, rm, PROMPTS, RESPONSES, batch_size=batch_size)
    rewards = score(model, None, rm, PROMPTS, RESPONSES, batch_size=batch_size)
    assert [one.response_reward for one in scored] == rewards
    assert [one.token_ids for one in scored] == RESPONSES
    for one, prompt, response in zip(scored, PROMPTS, RESPONSES, strict=True):
        gates, token_rewards = by_the_formula(model, rm, prompt, response)
        assert one.gate == pytest.approx(gates, abs=1e-5)
        assert one.reward == pytest.approx(token_rewards, abs=1e-4)
        weighted = sum(g * r for g, r in zip(one.gate, one.reward, strict=True)) / sum(one.gate)
        assert one.response_reward == pytest.approx(weighted, abs=1e-5)
        assert (one.read, one.flag) == (range(len(response)), None)


def test_only_the_region_has_numbers(llama, tokenizer):
    rm = reward_model(region="after:</think>")
    prompt = tokenizer("<bos><question>27+15<student>")["input_ids"]
    thought, answer = (tokenizer(text)["input_ids"] for text in ("<think>27+15=42, </think>", "<answer>42</answer>"))
    both, unmarked, empty = score_tokens(llama, tokenizer, rm, [prompt] * 3, [thought + answer, answer, thought])
    alone = score_tokens(llama, tokenizer, reward_model(), [prompt + thought], [answer])[0]
    assert (both.read, both.flag, both.token_ids) == (range(len(thought), len(thought + answer)), None, thought + answer)
    assert both.gate == pytest.approx(alone.gate, abs=1e-6)
    assert both.reward == pytest.approx(alone.reward, abs=1e-5)
    expected = score(llama, tokenizer, rm, [prompt], [thought + answer])[0]
    assert both.response_reward == pytest.approx(expected, abs=1e-5)  # another batch, another rounding
    assert (unmarked.read, unmarked.flag, len(unmarked.gate)) == (range(len(answer)), "marker_missing", len(answer))
    assert (empty.read, empty.flag, len(empty.gate)) == (range(len(thought)), "region_empty", len(thought))


def test_text_is_read_as_score_reads_it(llama, tokenizer):
    prompt, response = [{"role": "user", "content": "27+15"}], "<think>27+15=42, </think>"
    one = score_tokens(llama, tokenizer, reward_model(), [prompt], [response])[0]
    assert one.response_reward == score(llama, tokenizer, reward_model(), [prompt], [response])[0]
    assert one.token_ids[-1] == tokenizer.eos_token_id
    assert "".join(token_texts(tokenizer, one.token_ids)) == response + "<eos>"


def test_states_that_are_not_finite_are_flagged():
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[17] = math.nan
    good, broken = score_tokens(model, None, reward_model(), [[5], [5, 17]], [[6, 7], [8, 9]])
    assert good.flag is None
    assert broken.flag == "not_finite"
    assert math.isnan(broken.response_reward)


def test_another_base_model_is_refused(llama):
    with pytest.raises(ValueError, match="expected hidden states of width 48"):
        score_tokens(llama, None, SwiftRewardModel(SwiftConfig(48, (1,))), [[1]], [[2]])


@pytest.fixture(scope="module")
def bytewise():
    return make_bytewise()


@pytest.fixture(scope="module")
def sentencepiece():
    return make_sentencepiece()


def test_characters_split_over_tokens_appear_with_their_last_byte(bytewise):
    ids = bytewise("a\u00e9\U0001f389b\n")["input_ids"]
    assert token_texts(bytewise, ids) == ["a", "", "\u00e9", "", "", "", "\U0001f389", "b", "\n"]


@pytest.mark.parametrize(
    "text", ["\u65e5\u672c\u8a9e \u0bb5\u0ba3", "\U0001f469\u200d\U0001f52c and \ufffd and \u05e9", "  two  spaces "]
)
def test_nothing_of_the_text_is_lost_or_doubled(bytewise, text):
    assert "".join(token_texts(bytewise, bytewise(text)["input_ids"])) == text


def test_bytes_that_are_no_character_are_shown_and_the_text_goes_on(bytewise):
    whole = bytewise("\u20ac\u20acok")["input_ids"]
    cut = [*whole[:3], *whole[3:5], *whole[6:]]  # the last byte of the second sign is missing
    assert "".join(token_texts(bytewise, cut)) == "\u20ac\ufffdok"
    assert token_texts(bytewise, whole[:5]) == ["", "", "\u20ac", "", "\ufffd"]
    stray = whole[1:2] * 9
    assert "".join(token_texts(bytewise, [*stray, *whole[-2:]])) == "\ufffd" * 9 + "ok"


def test_tokens_that_end_within_the_next_character_show_what_they_complete(bytewise):
    first, *_, second, third = bytewise("\u20ac")["input_ids"]
    overlap = bytewise.convert_tokens_to_ids(OVERLAP)
    euros = [first, *[overlap] * 9, second, third]
    assert token_texts(bytewise, euros) == ["", *["\u20ac"] * 9, "", "\u20ac"]


def test_spaces_in_front_stay(sentencepiece):
    assert token_texts(sentencepiece, [1, 2, 0, 3], before=[0]) == [" world", "!", " Hello", " "]
    euro = [4 + byte for byte in "\u20ac".encode()]
    assert token_texts(sentencepiece, [1, *euro, 0], before=[0, *euro]) == [" world", "", "", "\u20ac", " Hello"]


def test_the_texts_of_a_long_response_take_a_time_linear_in_its_length(bytewise, monkeypatch):
    ids, read = bytewise("\u65e5a" * 500)["input_ids"], []
    decode = bytewise.decode
    monkeypatch.setattr(bytewise, "decode", lambda ids, **kwargs: read.append(len(ids)) or decode(ids, **kwargs))
    assert len(token_texts(bytewise, ids)) == 2000
    assert sum(read) < 12 * 2000
