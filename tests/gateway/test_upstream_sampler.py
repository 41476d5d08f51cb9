"""The best of N of an upstream: what is asked for, what is made of it, and what if some of it fails."""

import asyncio
import json
import math
import time
from contextlib import suppress

import pytest

from swift_rm.api.reply import read_reply
from swift_rm.api.reply_scoring import response_candidates
from swift_rm.gateway.request.completion_request import RequestLimits, parse_request
from swift_rm.gateway.request.errors import GatewayError
from swift_rm.gateway.request.settings import Settings
from swift_rm.gateway.upstream import sampler
from swift_rm.gateway.upstream.backend import UpstreamBackend
from swift_rm.gateway.upstream.text_completions import as_chat
from swift_rm.selection.rules import select
from tests.api.api_server import KEY, MODEL, Left, answer, choice, choices, cut, drawn, leaks, raw, slow, status, text_choice
from tests.api.best_of_n_runs import reward_model

MESSAGES = [{"role": "user", "content": "1 + 1"}]


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(sampler, "LONGEST_WAIT_S", 0.01)


def backend_of(api, rm=None, **changed):
    made = UpstreamBackend(Settings(**{"model": MODEL, "upstream": api.url, "timeout_s": 5.0, **changed}), rm or reward_model())
    made.start()
    return made


def asked(rule="swift-best-of-4", chat=True, **fields):
    prompt = {"messages": MESSAGES} if chat else {"prompt": "1 + 1"}
    return parse_request({"model": rule, **prompt, **fields}, chat, MODEL, RequestLimits())


def answers(api, *askings, views=False, rm=None, **changed):
    async def run():
        backend = backend_of(api, rm, **changed)
        found = [await backend.answer(asking, views) for asking in askings]
        assert backend.client._slots._value == backend._settings.concurrency
        await backend.close()
        return found

    return asyncio.run(run())


def failure(api, asking=None, **options):
    with pytest.raises(GatewayError) as raised:
        answers(api, asking or asked(), **options)
    assert not leaks(raised.value.message) and "1 + 1" not in raised.value.message
    return raised.value


@pytest.mark.parametrize("rule", ["best", "shrunk", "majority", "vote", "borda"])
def test_the_chosen_one_comes_first_then_the_others_by_reward(api, rule):
    api.usual = answer()
    [[one]] = answers(api, asked(MODEL, best_of=7, select=rule))
    read = read_reply({"choices": [drawn(api.requests[0], i) for i in range(7)]}, 7, 3)
    made = response_candidates(reward_model(), read)
    chosen = select(rule, [c.reward for c in made], [c.answer for c in made]).index
    rest = sorted((i for i in range(7) if i != chosen), key=lambda i: -made[i].reward)
    assert [c.text for c in one.candidates] == [made[i].text for i in (chosen, *rest)]
    assert [c.reward for c in one.candidates] == pytest.approx([made[i].reward for i in (chosen, *rest)])
    assert all(c.complete and 0 < c.probability < 1 for c in one.candidates)
    assert (one.drawn, one.ended, one.prompt_tokens) == (7, "all", 7)
    assert one.completion_tokens == sum(len(r.logprobs.chosen) for r in read)


@pytest.mark.parametrize("legacy", [True, False])
def test_text_completions_are_read_as_chats_are(api, legacy):
    api.usual = answer(legacy=legacy)
    [both] = answers(api, asked(chat=False, prompt=["1 + 1", "2 + 2"]))
    assert api.paths == ["/v1/completions"] * 2 and all(request["logprobs"] == 3 for request in api.requests)
    for one, request in zip(both, sorted(api.requests, key=lambda one: one["prompt"]), strict=True):
        made = response_candidates(reward_model(), read_reply({"choices": [drawn(request, i) for i in range(4)]}, 4, 3))
        assert sorted((c.text, c.reward) for c in one.candidates) == [
            (text, pytest.approx(reward)) for text, reward in sorted((c.text, c.reward) for c in made)
        ]


def test_a_request_says_what_the_client_wants_and_nothing_of_ours(api):
    asking = asked(
        n=2, temperature=0.5, top_p=0.9, top_k=5, stop="x", seed=-3, max_completion_tokens=6, user="u", min_p=0.1, logprobs=True,
        top_logprobs=1, stream=True, chat_template_kwargs={"think": False}, abstain_below=0.1,
    )  # fmt: skip
    answers(api, asking)
    [request] = api.requests
    assert 0 <= request.pop("seed") < 2**31
    assert request == {
        "model": MODEL, "messages": MESSAGES, "n": 4, "logprobs": True, "top_logprobs": 3, "temperature": 0.5, "top_p": 0.9,
        "top_k": 5, "stop": ["x"], "max_tokens": 6, "user": "u", "min_p": 0.1, "chat_template_kwargs": {"think": False},
    }  # fmt: skip
    assert api.headers[0]["authorization"] == f"Bearer {KEY}"
    answers(api, asked(), rm=reward_model(0))
    assert api.requests[-1]["top_logprobs"] == 1 and not {"seed", "max_tokens", "top_k", "stop"} & set(api.requests[-1])


@pytest.mark.parametrize("field", ["tools", "functions", "echo"])
def test_what_is_more_than_a_text_is_refused(api, field):
    error = failure(api, asked(**{field: [{"type": "function"}]}))
    assert (error.status, error.param) == (400, field) and not api.requests


def refuses_above(most, code=400):
    def reply(handler, request):
        (status(code, "n is too large") if request.get("n", 1) > most else answer())(handler, request)

    return reply


def test_how_many_choices_are_accepted_is_learnt(api):
    api.usual = refuses_above(3, 422)
    first, second = answers(api, asked("swift-vote-12"), asked("swift-vote-12", seed=5))
    assert [request.get("n", 1) for request in api.requests] == [12, 6] + [3] * 8
    assert first[0].drawn == second[0].drawn == 12 and first[0].ended == "all"
    seeds = [request["seed"] for request in api.requests[-4:]]
    assert len(set(seeds)) == 4 and min(abs(a - b) for a in seeds for b in seeds if a != b) > 64


def test_how_many_choices_are_given_is_learnt(api):
    api.usual = answer(most=1)
    api.busy_s = 0.05
    start = time.monotonic()
    [first], [second] = answers(api, asked("swift-vote-5"), asked("swift-vote-5"))
    assert [request.get("n", 1) for request in api.requests] == [5] + [1] * 9 and api.most > 2
    assert first.drawn == second.drawn == 5 and time.monotonic() - start < 0.5


def test_a_refusal_is_the_clients_and_teaches_nothing(api):
    api.usual = status(400, "your prompt is too \x1b[2J long")
    error = failure(api)
    assert error.status == 400 and "HTTP status 400: 'your prompt is too [2J long'" in error.message
    assert error.body()["error"]["type"] == "invalid_request_error"
    assert [request.get("n", 1) for request in api.requests] == [4, 2, 1]
    api.requests.clear()
    api.next.extend([status(400)] * 3)
    api.usual = answer()

    async def run():
        backend = backend_of(api)
        with suppress(GatewayError):
            await backend.answer(asked())
        await backend.answer(asked())
        await backend.close()

    asyncio.run(run())
    assert api.requests[-1]["n"] == 4


@pytest.mark.parametrize(
    "reply", [status(500), status(429, retry_after=0), status(408), cut, raw("{"), raw('{"error": {"message": "x"}}')]
)
def test_what_may_pass_is_asked_again(api, reply):
    api.next.extend([reply, reply])
    [[one]] = answers(api, asked())
    assert one.ended == "all" and len(api.requests) == 3 and api.bodies[0] == api.bodies[2]


@pytest.mark.parametrize(("reply", "code", "said", "tries"), [
    (status(500, f"no {KEY}"), 502, "failed: HTTP status 500", 3),
    (status(500, "out of memory"), 502, "failed: HTTP status 500: 'out of memory'", 3),
    (status(401, "no"), 502, "refuses the gateway's key", 1),
    (status(404, "no model"), 502, "no such model or route: HTTP status 404: 'no model'", 1),
    (status(429, "slow down", retry_after=1000), 429, "is asked for too much: HTTP status 429: 'slow down'", 1),
    (cut, 502, "was cut", 3),
    (raw("{"), 502, "a reply that is not JSON", 3),
    (raw("<", "text/html"), 502, "the content type 'text/html' instead of JSON", 3),
    (raw(json.dumps({"choices": [choice(0, ["a"], text=KEY)]})), 502, "sends the gateway's key back", 1),
    (choices(choice(0, ["a"], logprobs=[-1]) | {"logprobs": None}), 502, "returned no log-probabilities", 1),
    (choices(choice(0, ["a"], top=[-1.0])), 502, "token 0 has 1 alternatives, but the reward model reads 3", 1),
])  # fmt: skip
def test_what_never_passes_is_one_sentence(api, reply, code, said, tries):
    api.usual = reply
    error = failure(api)
    assert error.status == code and said in error.message and "\n" not in error.message and len(api.requests) == tries
    assert error.headers == ({"retry-after": "1000"} if code == 429 else {})


def test_what_came_answers_where_the_rest_fails(api):
    api.next.append(answer(most=3))
    api.usual = status(500)
    [[one]] = answers(api, asked("swift-best-of-5"), retries=1)
    assert (one.drawn, one.ended, len(one.candidates)) == (3, "failed", 3)
    api.next.append(answer(most=3))
    api.usual = slow(2.0)
    start = time.monotonic()
    [[one]] = answers(api, asked("swift-best-of-5"), timeout_s=0.4)
    assert one.ended == "failed" and 0.4 <= time.monotonic() - start < 1.0
    assert failure(api, timeout_s=0.2).status == 504


def test_an_empty_response_is_never_chosen_while_others_stand(api):
    empty = {"index": 0, "message": {"content": ""}, "finish_reason": "stop", "logprobs": {"content": []}}
    api.usual = choices(empty, choice(1, ["bad"], [-15.0], [-1.0, -2.0, -3.0]), {**empty, "index": 2})
    for rule in ("best", "majority", "shrunk"):
        [[one]] = answers(api, asked(MODEL, best_of=3, select=rule), views=True)
        assert [c.text for c in one.candidates] == ["bad", "", ""] and all(c.finish_reason == "stop" for c in one.candidates)
        assert math.isnan(one.candidates[1].reward) and [len(view.tokens) for view in one.views] == [1, 0, 0]
    api.usual = choices(empty)
    [[one]] = answers(api, asked("swift-best-of-1"))
    assert one.candidates[0].text == "" and math.isnan(one.candidates[0].probability)


def test_views_show_gate_and_reward_of_each_token(api):
    [[one]] = answers(api, asked("swift-best-of-3"), views=True)
    for candidate, view in zip(one.candidates, one.views, strict=True):
        assert "".join(token.text for token in view.tokens) == candidate.text and view.reward == candidate.reward
        weight = sum(token.gate for token in view.tokens)
        assert sum(token.gate * token.reward for token in view.tokens) / weight == pytest.approx(view.reward, rel=1e-4)
        assert all(token.token_id is None for token in view.tokens)


def test_without_a_rule_candidates_are_as_drawn_and_without_a_reward_model_there_are_none(api):
    [[one]] = answers(api, asked(MODEL, n=3))
    assert [c.text for c in one.candidates] == [drawn(api.requests[0], i)["message"]["content"] for i in range(3)]

    async def run():
        backend = UpstreamBackend(Settings(model=MODEL, upstream=api.url))
        backend.start()
        assert not backend.rewards
        with pytest.raises(GatewayError, match="no reward model: start it with --reward-model") as error:
            await backend.answer(asked("swift-majority-4"))
        assert error.value.status == 400
        with pytest.raises(ValueError, match="no reward model to load again"):
            backend.reload()
        await backend.close()

    asyncio.run(run())


def test_who_leaves_ends_the_upstreams_work(api):
    api.usual = left = Left()

    async def run():
        backend = backend_of(api)
        task = asyncio.create_task(backend.answer(asked()))
        assert await asyncio.to_thread(left.begun.wait, 5)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(left.event.wait, 2) and backend.client._slots._value == 32
        await backend.close()

    asyncio.run(run())


def test_a_reward_model_is_loaded_anew(api, tmp_path):
    reward_model().save_pretrained(tmp_path)

    async def run():
        backend = UpstreamBackend(Settings(model=MODEL, upstream=api.url, reward_model=str(tmp_path)))
        backend.start()
        [before] = await backend.answer(asked(seed=1))
        changed = reward_model()
        changed.head.weight.data[1] *= -1
        changed.save_pretrained(tmp_path)
        assert backend.reload() == str(tmp_path)
        [after] = await backend.answer(asked(seed=1))
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(ValueError, match="not a readable reward model"):
            backend.reload()
        [still] = await backend.answer(asked(seed=1))
        await backend.close()
        return before, after, still

    before, after, still = asyncio.run(run())
    texts = {c.text: c.reward for c in before.candidates}
    assert texts.keys() == {c.text for c in after.candidates} and any(texts[c.text] != c.reward for c in after.candidates)
    assert after.candidates == still.candidates


def test_alternatives_that_share_the_text_of_a_part_of_a_character_are_filled_up(api):
    parts = text_choice(choice(0, ["a"], [-0.5], [-0.7, -1.4, -2.1]))
    parts["logprobs"]["top_logprobs"] = [{"\ufffd": -1.4, "t": -0.7}]
    api.usual = choices(parts)
    [[one]] = answers(api, asked("swift-best-of-1", chat=False))
    assert math.isfinite(one.candidates[0].reward)
    filled = as_chat({"choices": [parts]}, 3)["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    assert [one["logprob"] for one in filled] == [-1.4, -0.7, -1.4]  # what is left, 0.257, would be likelier
    parts["logprobs"]["top_logprobs"] = [{"\ufffd": -3.0, "t": -0.06}]
    filled = as_chat({"choices": [parts]}, 3)["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    assert filled[2]["logprob"] == pytest.approx(-4.774, abs=1e-3)  # log(1 - e^-3 - e^-0.06)
    parts["logprobs"]["top_logprobs"] = [{"u": -1.4, "t": -0.7}]
    api.usual = choices(parts)
    assert "token 0 has 2 alternatives" in failure(api, asked("swift-best-of-1", chat=False)).message
    for broken in ({"tokens": 3}, {"tokens": ["a"], "token_logprobs": []}, {"tokens": ["a"], "token_logprobs": [1, 2]}):
        api.usual = choices({**parts, "logprobs": broken})
        assert "no lists of tokens" in failure(api, asked("swift-best-of-1", chat=False)).message
