import json

import pytest

from swift_rm.api.failures import RetryableFault, UnusableReply
from swift_rm.api.reply import content_tokens, read_reply
from tests.api.api_server import choice, completion

CLEF = list("\U0001d11e".encode())  # a character of four bytes


def token(text, bytes_=None, logprob=-0.5):
    return {"token": text, "bytes": bytes_, "logprob": logprob, "top_logprobs": []}


def known(*texts):
    return [token(text, list(text.encode())) for text in texts]


@pytest.mark.parametrize(
    ("entries", "content", "read"),
    [
        (known("27", " + 15", " = 42"), "27 + 15 = 42", 3),
        (known("27", " + 15", " = 42", "<|im_end|>"), "27 + 15 = 42", 3),  # the end token, as vLLM reports it
        ([*known("42"), token("", [])], "42", 1),  # and as llama.cpp does
        ([token("42"), token("</s>")], "42", 1),  # without bytes
        (known("42", "\nStop", " here", "</s>"), "42", 1),  # a stop string that was taken away
        (known("42", "St", "op!"), "42S", 2),  # a content that ends within a token
        (known("\n\n", "42", "</s>"), "42", 2),  # white space that was stripped
        (known("27", "+", "15", "</s>"), "27 + 15", 3),  # white space that only the text has
        (known("\u2581It", "\u2581is", "</s>"), "It is", 2),
        (known("<think>", "so", "</think>", "42", "</s>"), "42", 4),  # thoughts before the content are a part of the response
        ([token("\\xf0", CLEF[:1]), token("\\x9d\\x84\\x9e", CLEF[1:]), token("</s>", [60])], "\U0001d11e", 2),
        ([token("\\xf0\\x9d"), token("\\x84\\x9e"), token("</s>")], "\U0001d11e", 2),  # no bytes: the end token is known
        ([token("\ufffd"), token("\ufffd")], "\U0001d11e", 2),  # and here nothing is certain
        ([token("\ufffd", list("\ufffd".encode())), token("\ufffd"), token("!")], "\U0001d11e!", 3),
        ([token("token_id:27"), token("token_id:2")], "42", 1),  # only vLLM does so, and it reports the end token
        (known("<|im_end|>"), "", 0),
        ([], "", 0),
    ],
)
def test_the_tokens_of_the_content(entries, content, read):
    assert content_tokens(entries, content, stopped=True) == read


def test_of_a_response_that_was_cut_nothing_is_left_out_that_is_not_certain():
    assert content_tokens([token("token_id:27"), token("token_id:2")], "42", stopped=False) == 2
    assert content_tokens([token("\ufffd"), token("x")], "\U0001d11ey", stopped=False) == 2
    assert content_tokens(known("so", "</s>"), "", stopped=True, hidden=True) == 1  # a thought alone


def read(*made, count=1, top=0, **body):
    return read_reply({**completion(list(made)), **body}, count, top)


def test_a_choice_is_read_without_its_end_token():
    made = choice(0, ["4", "2", "<eos>"], [-0.25, -9999.0, -1.0], top=[-3.0, -0.125], text="42")
    (one,) = read(made, top=2)
    assert (one.text, one.finish_reason, one.tokens) == ("42", "stop", 3)
    assert one.logprobs.chosen == [-0.25, -20.0] and one.logprobs.top == [[-0.125, -3.0]] * 2


def test_choices_come_in_the_order_of_their_index_and_no_more_than_asked_for():
    made = [choice(2, ["c"]), choice(0, ["a"], reason="length"), choice(1, ["b"])]
    assert [(one.text, one.finish_reason) for one in read(*made, count=2)] == [("a", "length"), ("b", "stop")]


def test_a_malformed_choice_is_left_out_while_others_can_be_read():
    assert [one.text for one in read({"index": 0}, choice(1, ["b"]), count=2)] == ["b"]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ([1], "without choices"),
        ({"error": {"message": "later"}}, "without choices"),
        ({"choices": []}, "without choices"),
        ({"choices": "x"}, "without choices"),
        ({"choices": [7]}, "without a message"),
        ({"choices": [{"message": "x"}]}, "without a message"),
        ({"choices": [choice(0, ["a"], text=["a"])]}, "without a message"),
        ({"choices": [choice(0, ["a"], logprobs=[None])]}, "log-probability of token 0 is missing"),
        ({"choices": [choice(0, ["a"], logprobs=["-1"])]}, "must be a number, got '-1'"),
        ({"choices": [choice(0, ["a"], logprobs=[float("nan")])]}, "at most 0"),
        ({"choices": [choice(0, ["a"], logprobs=[0.5])]}, "at most 0, got 0.5"),
        ({"choices": [choice(0, ["a"], logprobs=[10**400])]}, "at most 0"),
        ({"choices": [{**choice(0, ["a"]), "logprobs": {"content": [5]}}]}, "no list of tokens"),
        ({"choices": [{**choice(0, ["a"]), "logprobs": {"content": "a"}}]}, "no list of tokens"),
        ({"choices": [choice(0, ["a"], reason="content_filter")]}, "ended with 'content_filter'"),
    ],
)
def test_a_malformed_reply(body, why):
    with pytest.raises(RetryableFault, match=why):
        read_reply(json.loads(json.dumps(body)), 1, 0)


@pytest.mark.parametrize("logprobs", [None, {}, {"content": None}, {"content": []}, "none"])
def test_no_log_probabilities(logprobs):
    with pytest.raises(UnusableReply, match=r"accepted the request but returned no log-probabilities: .* take another model"):
        read_reply({"choices": [{**choice(0, ["a"]), "logprobs": logprobs}]}, 1, 0)
    missing = choice(0, ["a"])
    del missing["logprobs"]
    with pytest.raises(UnusableReply, match="returned no log-probabilities"):
        read(missing)


def test_an_empty_response_has_no_tokens():
    for made in (choice(0, []), choice(0, ["<eos>"], text=""), {**choice(0, [], text=""), "logprobs": None}):
        (one,) = read(made, top=5)
        assert one.text == "" and one.logprobs.chosen == []
    (one,) = read({**choice(0, []), "message": {"role": "assistant", "content": None, "tool_calls": []}})
    assert one.text == ""


def test_fewer_alternatives_are_refused_unless_they_are_all_there_are():
    with pytest.raises(UnusableReply, match=r"token 0 has 2 alternatives, but the reward model reads 5"):
        read(choice(0, ["a"], top=[-1.0, -2.0]), top=5)
    (one,) = read(choice(0, ["a"], top=[-0.0001, -9.3]), top=5)
    assert one.logprobs.alternatives(5) == [[-0.0001, -9.3, -20.0, -20.0, -20.0]]
