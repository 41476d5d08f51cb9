import random

import pytest
import torch

from swift_rm import best_of_n
from swift_rm.tokens.stop_text import StopText, cut_at_stop_string


def ends_at(tokenizer, ids, strings, width=0):
    """Return after how many tokens of a row the criterion ends it, None if never."""
    stop = StopText(tokenizer, strings, width)
    prompt = [5] * width
    return next((end for end in range(1, len(ids) + 1) if stop(torch.tensor([prompt + ids[:end]])).item()), None)


def test_a_text_is_cut_before_the_first_of_the_strings():
    assert cut_at_stop_string("one two three", ["three", "two"]) == "one "
    assert cut_at_stop_string("one two", []) == cut_at_stop_string("one two", ["four"]) == "one two"
    assert cut_at_stop_string("abcd", ["bc", "abcd"]) == ""


def test_rows_end_where_their_text_says_so(tokenizer):
    vocabulary = list(range(3, len(tokenizer)))
    for seed in range(200):
        random.seed(seed)
        ids = random.choices(vocabulary, k=random.randint(1, 60))
        text = tokenizer.decode(ids, skip_special_tokens=True)
        begin = random.randrange(max(1, len(text) - 3))
        strings = [text[begin : begin + random.randint(1, 12)], "never said"]
        texts = [tokenizer.decode(ids[:end], skip_special_tokens=True) for end in range(len(ids) + 1)]
        expected = next((end for end, text in enumerate(texts) if strings[0] and strings[0] in text), None)
        if strings[0]:
            assert ends_at(tokenizer, ids, strings, width=seed % 3) == expected


def test_the_prompt_is_not_searched_and_special_tokens_can_be_asked_for(tokenizer):
    digits = [tokenizer.convert_tokens_to_ids(token) for token in "27"]
    assert ends_at(tokenizer, digits[1:], ["27"]) is None
    assert StopText(tokenizer, ["27"], 1)(torch.tensor([digits])).tolist() == [False]
    assert StopText(tokenizer, ["27"], 0)(torch.tensor([digits, digits[::-1]])).tolist() == [True, False]
    eos = tokenizer.eos_token_id
    assert ends_at(tokenizer, [digits[0], eos, digits[1]], ["27"]) == 3, "what is not shown does not part a text"
    assert ends_at(tokenizer, [digits[0], eos, digits[1]], [tokenizer.eos_token]) == 2
    assert ends_at(tokenizer, [digits[0]] + [eos] * 60 + [digits[1]], ["27"]) == 62, "however much is not shown"


@pytest.mark.parametrize("stop", ["</think>", ["so ", "now "]])
def test_best_of_n_stops_at_text_with_any_tokenizer(stop):
    from swift_rm.models.load import load_language_model, resolve
    from swift_rm.reward.reward_model import SwiftRewardModel

    model, tokenizer = load_language_model("tiny-reasoner", progress=False)
    rm = SwiftRewardModel.from_pretrained(resolve("tiny-reasoner-reward"))
    prompt, strings = [{"role": "user", "content": "27+15"}], [stop] if isinstance(stop, str) else stop
    (result,) = best_of_n(model, tokenizer, rm, [prompt], n=8, stop_strings=stop)
    assert any(one.text.endswith(tuple(strings)) for one in result.candidates)
    for one in result.candidates:
        before = tokenizer.decode(one.token_ids[:-1], skip_special_tokens=True)
        assert not any(string in before for string in strings)
