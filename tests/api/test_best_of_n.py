import json
import math
import threading
import time
import traceback
from collections import Counter

import pytest

from swift_rm import SwiftConfig, SwiftRewardModel
from swift_rm.api.failures import ApiFailure
from swift_rm.reward.logprob_features import response_features
from swift_rm.reward.logprobs import TokenLogprobs, packed_logprobs
from swift_rm.selection.rules import select
from tests.api.api_server import KEY, MODEL, answer, choice, choices, drawn, leaks, raw, slow, status
from tests.api.best_of_n_runs import PROMPTS, answer_of, best, fails_on, reward_model, work


def test_candidates_are_ranked_by_the_rewards_of_their_log_probabilities(api):
    rm = reward_model()
    ask = best(api, rm)
    results = ask(PROMPTS)
    assert [result.prompt for result in results] == PROMPTS
    for request, result in zip(sorted(work(api), key=lambda one: one["messages"][0]["content"]), results, strict=True):
        made = [drawn(request, i) for i in range(4)]
        entries = [one["logprobs"]["content"] for one in made]
        told = [
            TokenLogprobs.of([e["logprob"] for e in row], [[o["logprob"] for o in e["top_logprobs"]] for e in row])
            for row in entries
        ]
        chosen, top, offsets = packed_logprobs(told, 3)
        rewards = rm(response_features(chosen, top, offsets), offsets).tolist()
        order = sorted(range(4), key=lambda i: -rewards[i])
        texts = [one["message"]["content"] for one in made]
        assert [candidate.text for candidate in result.candidates] == [texts[i] for i in order]
        assert [candidate.reward for candidate in result.candidates] == pytest.approx([rewards[i] for i in order], abs=1e-6)
        assert result.best.text == texts[select("shrunk", rewards, [answer_of(text) for text in texts]).index]
        assert result.tokens_spent == sum(map(len, entries)) and result.ended == "all"
        first = result.candidates[0]
        assert first.token_ids == [] and first.finish_reason == "stop" and first.flag is None
        assert first.logprob == pytest.approx(sum(told[order[0]].chosen) / len(told[order[0]].chosen))
        assert first.probability == pytest.approx(1 / (1 + math.exp(-first.reward)))
    assert ask.usage.requests == 4 and ask.usage.completion_tokens >= sum(result.tokens_spent for result in results)
    assert ask.usage.prompt_tokens == 4 * 7


def test_a_request_says_what_is_wanted(api):
    best(api, temperature=0.7, top_p=0.9, max_tokens=3, extra_body={"top_k": 5})(PROMPTS[:1])
    probe, request = api.requests
    assert probe["n"] == 4 and probe["max_tokens"] == 3 and "seed" not in probe
    assert request.pop("seed") < 2**31
    assert request == {
        "model": MODEL, "messages": [{"role": "user", "content": "1 + 1"}], "n": 4, "logprobs": True, "top_logprobs": 3,
        "temperature": 0.7, "top_p": 0.9, "max_tokens": 3, "top_k": 5,
    }  # fmt: skip
    best(api, reward_model(0), seed=None)(PROMPTS[:1])
    assert "seed" not in api.requests[-1] and "top_logprobs" not in api.requests[-1] and "max_tokens" not in api.requests[-1]


def test_seeds_are_distinct_and_the_same_again(api):
    ask = best(api)
    first = ask([*PROMPTS, PROMPTS[0]])
    seeds = [request["seed"] for request in work(api)]
    assert len(set(seeds)) == 4
    api.requests.clear()
    assert ask([*PROMPTS, PROMPTS[0]]) == first and {request["seed"] for request in work(api)} == set(seeds)


@pytest.mark.parametrize(
    ("server", "said"),
    [(answer(most=1), "gives one choice where several are asked for"), (None, "refuses to give several choices")],
)
def test_without_n_responses_are_asked_for_one_by_one(api, server, said):
    def only_one(handler, request):
        (status(400, "n must be 1") if request.get("n", 1) > 1 else answer())(handler, request)

    api.usual = server or only_one
    with pytest.warns(UserWarning, match=said) as told:
        results = best(api, concurrency=3)(PROMPTS)
    assert len(told) == 1 and all(len(result.candidates) == 4 for result in results)
    singles = [request for request in api.requests if "n" not in request]
    assert len({request["seed"] for request in singles if "seed" in request}) == 12


def test_missing_choices_are_asked_for_again(api):
    api.usual = answer(most=3)
    results = best(api, n=7)(PROMPTS[:1])
    assert sorted(request.get("n", 1) for request in work(api)) == [1, 3, 3]  # the probe found out what it gives
    assert len(results[0].candidates) == 7 and len({request["seed"] for request in work(api)}) == 3
    api.requests.clear()
    api.next.extend([answer(), answer(most=2)])  # later fewer than in the probe
    assert len(best(api, n=3)(PROMPTS[:1])[0].candidates) == 3
    assert [request.get("n", 1) for request in api.requests] == [3, 3, 1]


def test_a_server_that_gives_no_more_than_some_at_once_is_asked_for_as_many(api):
    def at_most_three(handler, request):
        (status(400, "n is at most 3") if request.get("n", 1) > 3 else answer())(handler, request)

    api.usual = at_most_three
    results = best(api, n=10, concurrency=1)(PROMPTS[:2])
    assert [len(result.candidates) for result in results] == [10, 10]
    assert [request.get("n", 1) for request in api.requests] == [10, 1, 5, 2, *[2] * 10]  # found out once, by halves


@pytest.mark.parametrize("most", [8, 1])
def test_no_more_requests_are_under_way_than_allowed(api, most):
    api.usual, api.busy_s = answer(most=1), 0.01
    with pytest.warns(UserWarning):
        best(api, n=6, concurrency=most)([f"question {i}" for i in range(4)])
    assert api.most <= most and (most == 1 or api.most > 3)


def no_logprobs(handler, request):
    answer(logprobs=None)(handler, request)


@pytest.mark.parametrize(
    ("server", "kind", "said"),
    [
        (no_logprobs, ValueError, "accepted the request but returned no log-probabilities: "),
        (choices(choice(0, ["a"], top=[-1.0, -2.0]), choice(1, ["b"], top=[-1.0, -2.0])), ValueError,
         r"returned 2 alternatives of a token where 3 were asked for: sample with --top-logprobs 2, .* \(--top 2\)"),
        (status(400, "top_logprobs must be <= 2"), ValueError, "HTTP status 400: 'top_logprobs must be <= 2'"),
        (status(401), ValueError, "refuses the key"),
        (status(404, "no model"), ValueError, "has no model 'tiny'"),
        (status(500), ApiFailure, "HTTP status 500"),
        (raw("<html>"), ApiFailure, "not JSON"),
    ],
)  # fmt: skip
def test_what_the_probe_finds_out_before_anything_is_asked(api, server, kind, said):
    api.usual = server
    with pytest.raises(kind, match=said) as error:
        best(api)(PROMPTS)
    assert len(api.requests) <= 4
    whole = "".join(traceback.format_exception(error.value))
    assert not leaks(whole) and "\n" not in str(error.value)


def test_other_questions_results_come_with_the_failure(api):
    api.usual, kept = fails_on("1 + 2"), []
    with pytest.raises(ApiFailure, match=r"1 of 3 questions have no candidate: .* after 2 tries: HTTP status 500") as failure:
        best(api)(PROMPTS, on_results=kept.extend)
    results = failure.value.results
    assert results[1] is None and [results[0], results[2]] == kept and kept[1].prompt == "1 + 3"
    assert [result.ended for result in kept] == ["all", "all"]


@pytest.mark.parametrize("fault", [no_logprobs, status(400, "too long"), slow(1.0), raw('{"choices": 1}')])
def test_a_fault_of_one_question_is_its_own(api, fault):
    api.usual = fails_on("1 + 3", fault)
    with pytest.raises(ApiFailure, match="1 of 3 questions have no candidate") as failure:
        best(api, timeout_s=0.3)(PROMPTS)
    assert [result is None for result in failure.value.results] == [False, False, True]


def test_a_question_is_answered_from_what_came(api):
    seen = Counter()

    def fails_twice_of_four(handler, request):
        seen[request.get("seed")] += 1
        bad = len(seen) in (3, 5) if request.get("seed") else False
        (status(500) if bad else answer(most=1))(handler, request)

    api.usual = fails_twice_of_four
    with pytest.warns(UserWarning, match="one choice"):
        (result,) = best(api, concurrency=1, retries=0)(PROMPTS[:1])
    assert len(result.candidates) == 2 and result.ended == "failed"


def test_a_key_refused_midway_ends_the_run_with_what_came(api):
    api.usual = fails_on("1 + 3", status(401))
    with pytest.raises(ApiFailure, match=r"1 of 3 questions were not answered: .* refuses the key") as failure:
        best(api, concurrency=1)(PROMPTS)
    assert [result is None for result in failure.value.results] == [False, False, True]
    assert not leaks("".join(traceback.format_exception(failure.value)))


def test_a_server_that_is_down_is_left_alone_after_a_while(api):
    api.usual = fails_on("question")
    with pytest.raises(ApiFailure, match="100 of 101 questions have no candidate"):
        best(api, retries=0)(["1 + 1", *(f"question {i}" for i in range(100))])
    assert len(api.requests) < 60


def test_a_server_that_says_the_key_is_not_trusted(api):
    api.next.append(answer())
    api.usual = choices(*(choice(i, [f"it is {KEY}"], top=[-0.1, -2.5, -5.0]) for i in range(4)))
    with pytest.raises(ValueError, match="sends the key back") as error:
        best(api)(PROMPTS[:1])
    assert not leaks(error.value)


def test_ctrl_c_keeps_what_came(api):
    released = threading.Event()

    def hangs_on_the_last(handler, request):
        if request["messages"][0]["content"] == "1 + 3":
            released.wait(5)
        answer()(handler, request)

    api.usual, kept = hangs_on_the_last, []

    def stop(results):
        kept.extend(results)
        if len(kept) == 2:
            raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.warns(UserWarning, match="stopped by Ctrl-C: 2 of 3 questions have an answer"):
        results = best(api)(PROMPTS, on_results=stop)
    released.set()
    assert results == kept and len(results) == 2 and time.monotonic() - start < 3


def test_an_empty_response_is_never_chosen(api):
    made = [choice(0, ["<eos>"], text="", top=[-0.1, -2.5, -5.0]), choice(1, ["4"], top=[-0.1, -2.5, -5.0])]
    api.usual = choices(*made)
    (result,) = best(api, n=2)(PROMPTS[:1])
    assert result.best.text == "4" and not result.candidates[1].complete
    assert math.isnan(result.candidates[1].reward) and result.candidates[1].flag == "region_empty"
    api.usual = choices(*[{**made[0], "index": i} for i in range(2)])
    with pytest.raises(ApiFailure, match="1 of 1 questions have no candidate: the responses are empty"):
        best(api, n=2)(PROMPTS[:1])


@pytest.mark.parametrize(
    ("rm", "options", "said"),
    [
        (SwiftRewardModel(SwiftConfig(4, (-1,), base_model=MODEL)), {}, "reads 'hidden', which no API returns"),
        (reward_model(base_model="other"), {}, "trained on other, but the endpoint is asked for 'tiny'"),
        (reward_model(base_model=None), {}, "trained on an unnamed model"),
        (reward_model(), {"select": "rank"}, "fuses with an external reward"),
        (reward_model(), {"select": "luck"}, "unknown selection rule"),
        (reward_model(), {"n": 0}, "n must be at least 1"),
    ],
)
def test_settings_that_do_not_fit(api, rm, options, said):
    with pytest.raises(ValueError, match=said):
        best(api, rm, **options)
    assert best(api, reward_model(base_model="other"), any_model=True)(PROMPTS[:1])


@pytest.mark.parametrize("prompts", ["1 + 1", [], [""], [[1, 2]], [[]]])
def test_prompts_that_are_none(api, prompts):
    with pytest.raises(ValueError, match=r"prompts? must be"):
        best(api)(prompts)
    assert not api.requests


def test_several_heads_judge_together(api):
    rm = reward_model(heads=2)
    (result,) = best(api, rm)(PROMPTS[:1])
    assert all(math.isfinite(candidate.reward) for candidate in result.candidates)
    assert json.dumps(result.best.text)
