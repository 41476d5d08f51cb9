import json
import math

import pytest
import torch

from swift_rm.reward.logprobs import FLOOR, TokenLogprobs, logprobs_of, packed_logprobs


def test_alternatives_are_sorted_and_the_chosen_one_need_not_be_among_them():
    read = TokenLogprobs.of([-3, -0.25], [[-2.0, -0.5, -1.5], [-1, -0.25]])
    assert read == TokenLogprobs([-3.0, -0.25], [[-0.5, -1.5, -2.0], [-0.25, -1.0]])
    assert all(type(value) is float for values in [read.chosen, *read.top] for value in values)
    assert TokenLogprobs.of([-1.0]).top == [[]], "chosen tokens alone are enough for some"


@pytest.mark.parametrize("least", [-math.inf, -9999.0, -9999, -(10**400), -20.5])
def test_what_is_as_good_as_impossible_is_read_as_the_floor(least):
    assert TokenLogprobs.of([least], [[-0.1, least]]) == TokenLogprobs([FLOOR], [[-0.1, FLOOR]])


def test_a_log_probability_that_was_rounded_above_zero_is_certain():
    assert TokenLogprobs.of([1e-6], [[0.0, 0.009]]) == TokenLogprobs([0.0], [[0.0, 0.0]])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "is missing"),
        (math.nan, "must be at most 0, got nan"),
        (0.02, "must be at most 0, got 0.02"),
        (math.inf, "must be at most 0, got inf"),
        (10**400, "must be at most 0, got 1000"),
        (True, "must be a number, got True"),
        ("-1.5", "must be a number, got '-1.5'"),
        ([-1.0], r"must be a number, got \[-1.0\]"),
    ],
)
def test_what_is_no_log_probability_is_refused_with_its_place(value, said):
    with pytest.raises(ValueError, match=f"the log-probability of token 1 {said}"):
        TokenLogprobs.of([-1.0, value])
    with pytest.raises(ValueError, match=f"the log-probability of an alternative of token 2 {said}"):
        TokenLogprobs.of([-1.0] * 3, [[-1.0], [], [-0.5, value, -3.0]])


def test_as_many_tokens_must_have_alternatives_as_there_are():
    with pytest.raises(ValueError, match="there are 2 tokens' log-probabilities, but alternatives of 3 tokens"):
        TokenLogprobs.of([-1.0, -1.0], [[-1.0]] * 3)


def test_fewer_alternatives_are_as_good_where_they_have_all_the_mass():
    three = [math.log(p) for p in (0.7, 0.2, 0.1)]
    assert TokenLogprobs.of([-1.0], [three]).alternatives(5) == [[*three, FLOOR, FLOOR]]
    assert TokenLogprobs.of([-1.0], [three]).alternatives(2) == [three[:2]], "more than are read are left out"
    assert TokenLogprobs.of([-1.0, -2.0], [three, three]).alternatives(0) == [[], []]
    some = TokenLogprobs.of([-1.0, -1.0], [three, three[:2]])
    with pytest.raises(ValueError, match=r"token 1 has 2 alternatives, but the reward model reads 3: .*top_logprobs=3.*--top 2"):
        some.alternatives(3)
    assert some.alternatives(2) == [three[:2], three[:2]]


def test_responses_are_packed_and_an_error_names_the_response():
    one, other = TokenLogprobs.of([-1.0, -2.0], [[-1.0, -3.0], [-2.0, -4.0]]), TokenLogprobs.of([-5.0], [[-0.5, -5.0]])
    chosen, top, offsets = packed_logprobs([one, other], 2)
    assert chosen.tolist() == [-1.0, -2.0, -5.0] and offsets.tolist() == [0, 2, 3]
    assert top.tolist() == [[-1.0, -3.0], [-2.0, -4.0], [-0.5, -5.0]]
    assert packed_logprobs([one, other], 0)[1].shape == (3, 0)
    with pytest.raises(ValueError, match=r"^response 1: token 0 has 2 alternatives, but the reward model reads 3"):
        packed_logprobs([TokenLogprobs.of([0.0], [[0.0]]), other], 3)
    with pytest.raises(ValueError, match=r"^the reply has no token but the end token"):
        packed_logprobs([one, TokenLogprobs([], [])], 2, ["first", "the reply"])


def test_a_record_keeps_five_decimals_and_reads_again():
    said = TokenLogprobs.of([-1.23456789], [[-0.3, -1.23456789]]).to_record()
    assert said == {"token_logprobs": [-1.23457], "top_logprobs": [[-0.3, -1.23457]]}
    assert TokenLogprobs.of_record(json.loads(json.dumps(said))) == TokenLogprobs([-1.23457], [[-0.3, -1.23457]])


def test_the_end_token_of_a_record_is_not_read():
    record = {"token_logprobs": [-1.0, -2.0, None], "top_logprobs": [[-1.0], [-0.5], [None]]}
    assert TokenLogprobs.of_record({**record, "end_token": True}) == TokenLogprobs([-1.0, -2.0], [[-1.0], [-0.5]])
    with pytest.raises(ValueError, match="of token 2 is missing"):
        TokenLogprobs.of_record({**record, "end_token": False})
    assert TokenLogprobs.of_record({"token_logprobs": [-1.0], "end_token": True}) == TokenLogprobs([], [])


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({}, "it has no 'token_logprobs'"),
        ({"token_logprobs": None}, "it has no 'token_logprobs'"),
        ({"token_logprobs": [-1.0], "top_logprobs": {}}, "its 'top_logprobs' must be a list"),
        ({"token_logprobs": [-1.0], "top_logprobs": [None]}, "its 'top_logprobs' must be a list"),
        ({"token_logprobs": [-1.0], "top_logprobs": [[-1.0], []], "end_token": True}, "alternatives of 2 tokens"),
    ],
)
def test_a_record_without_usable_log_probabilities_is_refused(record, said):
    with pytest.raises(ValueError, match=said):
        TokenLogprobs.of_record(record)


def test_logits_give_what_a_server_would_return_of_them():
    logits = torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.1, 0.2, 0.7, 0.0]]).log()
    chosen, top = logprobs_of(logits.double(), torch.tensor([1, 3]), 3)
    assert chosen.tolist() == pytest.approx([math.log(0.25), FLOOR])
    expected = [[0.5, 0.25, 0.25], [0.7, 0.2, 0.1]]
    assert top.exp().tolist() == [pytest.approx(row) for row in expected]
    wide = logprobs_of(logits, torch.tensor([1, 3]), 6)[1]
    assert wide[:, 3:].tolist() == [[FLOOR] * 3] * 2, "a vocabulary has no more alternatives than tokens"
    assert logprobs_of(logits, torch.tensor([1, 3]), 0)[1].shape == (2, 0)
