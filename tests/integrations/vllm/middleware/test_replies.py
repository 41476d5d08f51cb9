"""Rewards in whole replies of vLLM's server: their values, their order, the client's ids, and requests that are refused."""

import asyncio
import json

import pytest

from swift_rm.integrations.vllm.server.middleware import RewardMiddleware
from swift_rm.selection.rules import select
from swift_rm.tasks.answers import find_answer
from swift_rm.tokens.encoding import encode_prompt
from tests.integrations.vllm.fake_server import JSON, TEXT, ask, asking, reply
from tests.integrations.vllm.middleware.replies import BODY, MESSAGES, TEXTS, choices, rewards_of


@pytest.mark.parametrize("kind", ["token", "generating", "marker"])
def test_rewards_are_those_that_score_gives(make, expected, kind):
    app = make(kind)
    answer = ask(app, BODY)
    assert rewards_of(answer) == pytest.approx(expected(app, [MESSAGES] * 4, app.responses), abs=1e-5)
    for choice in choices(answer):
        assert choice["probability"] == pytest.approx(app.engine.rm.probability([choice["reward"]])[0])
        assert choice["token_ids"] is None
    assert [choice.get("reward_flag") for choice in choices(answer)][:3] == [None] * 3
    assert choices(answer)[3].get("reward_flag") == ("marker_missing" if kind == "marker" else None)
    reply_ = json.loads(answer.body)
    assert reply_["prompt_token_ids"] is None and reply_["usage"] == {"completion_tokens": 9}
    assert app.engine.kept == {} and len(app.engine.generated) == (4 if kind == "token" else 0)


@pytest.mark.parametrize("kind", ["token", "generating"])
@pytest.mark.parametrize("n", [1, 2])
def test_each_prompt_of_a_list_has_its_own_rewards(make, expected, kind, n):
    app, prompts = make(kind), ["27+15", "12+30-03"]
    answer = ask(app, {"model": "m", "prompt": prompts, "n": n}, TEXT)
    asked = [prompt for prompt in prompts for _ in range(n)]
    assert rewards_of(answer) == pytest.approx(expected(app, asked, app.responses[: 2 * n]), abs=1e-5)
    assert len(set(rewards_of(answer))) == 2 * n
    assert all(choice["token_ids"] is None and choice["prompt_token_ids"] is None for choice in choices(answer))


def test_token_ids_are_the_clients_who_asks_for_them(make):
    app = make("generating")
    for field in (True, "true", 1):
        answer = ask(app, {**BODY, "return_token_ids": field})
        assert [choice["token_ids"] for choice in choices(answer)] == app.responses
        assert json.loads(answer.body)["prompt_token_ids"] == encode_prompt(app.engine.tokenizer, MESSAGES)
    for field in (False, None, "false", 0):
        assert choices(ask(app, {**BODY, "return_token_ids": field}))[0]["token_ids"] is None
    assert all(body["return_token_ids"] is True for body in app.seen)


def test_what_vllm_gets_is_the_body_otherwise(make):
    app = make("generating")
    body = {**BODY, "temperature": 0.5, "stop": ["ü"], "swift_select": "best", "vllm_xargs": {"a": [1]}, "user": None}
    ask(app, body)
    del body["swift_select"]
    assert app.seen == [{**body, "return_token_ids": True}]


def test_a_request_has_a_name_of_its_own_and_the_client_its_own_id(make):
    app, names = make("generating"), set()
    for _ in range(3):
        answer = ask(app, BODY, headers=[*JSON, (b"X-Request-Id", b"theirs")])
        assert json.loads(answer.body)["id"] == "chatcmpl-theirs"
        (taken,) = app.engine.calls[-1:]
        assert taken[1].startswith("1_chatcmpl-theirs-") and len(taken) == 4
        names.update(taken)
    assert len(names) == 12
    assert json.loads(ask(app, {"model": "m", "prompt": "1+1", "request_id": "own"}, TEXT).body)["id"] == "cmpl-own"
    taken = app.engine.calls[-1]
    assert len(taken) == 1 and taken[0].startswith("cmpl-") and taken[0].endswith("-0") and "own" not in taken[0]
    assert json.loads(ask(app, BODY).body)["id"].removeprefix("chatcmpl-") in app.engine.calls[-1][0]


def test_an_id_in_a_header_of_the_reply_is_the_clients(make):
    app = make("generating")

    async def with_id(scope, receive, send):
        await receive()
        own = dict(scope["headers"])[b"x-request-id"]
        await reply(send, 200, [*JSON, (b"x-request-id", own)], b"[1, 2]")

    app.answer = with_id
    answer = ask(app, BODY, headers=[*JSON, (b"x-request-id", b"theirs")])
    assert answer.headers[b"x-request-id"] == b"theirs" and answer.body == b"[1, 2]"
    assert len(ask(app, BODY).headers[b"x-request-id"]) == 32


@pytest.mark.parametrize("rule", ["shrunk", "best", "majority", "vote", "borda"])
def test_choices_come_in_the_order_of_a_rule(make, rule):
    app = make("generating")
    plain, answer = choices(ask(app, BODY)), choices(ask(app, {**BODY, "swift_select": rule}))
    texts, rewards = [one["message"]["content"] for one in plain], [one["reward"] for one in plain]
    chosen = select(rule, rewards, [find_answer(text) for text in texts]).index
    others = sorted((i for i in range(4) if i != chosen), key=lambda i: -rewards[i])
    assert [one["message"]["content"] for one in answer] == [texts[i] for i in [chosen, *others]]
    assert [one["index"] for one in answer] == [0, 1, 2, 3]
    assert [one["reward"] for one in answer] == pytest.approx([rewards[i] for i in [chosen, *others]])


def test_each_prompts_choices_are_ordered_apart(make):
    app = make("generating")
    body = {"model": "m", "prompt": ["27+15", "12+30-03"], "n": 2}
    plain, answer = rewards_of(ask(app, body, TEXT)), rewards_of(ask(app, {**body, "swift_select": "best"}, TEXT))
    assert answer == pytest.approx([*sorted(plain[:2], reverse=True), *sorted(plain[2:], reverse=True)]) and answer != plain


def test_without_rewards_the_order_stays(make):
    app = make("generating")
    app.engine.fails = Exception("Call to collective_rpc method failed: out of memory")
    answer = choices(ask(app, {**BODY, "swift_select": "shrunk"}))
    assert [one["message"]["content"] for one in answer] == TEXTS and [one["reward"] for one in answer] == [None] * 4


@pytest.mark.parametrize(
    ("fields", "param", "told"),
    [
        ({"swift_select": "worst"}, "swift_select", "swift_select='worst' is no rule: the rules are shrunk, best"),
        ({"swift_select": "rank"}, "swift_select", "'rank' is no rule"),
        ({"swift_select": ["best"]}, "swift_select", "is no rule"),
        ({"swift_slect": "best"}, "swift_slect", "swift_slect is unknown here"),
        ({"swift_select": "best", "stream": True}, "stream", "swift_select='best' and stream do not go together"),
        ({"use_beam_search": True}, "use_beam_search", "beams are searched for, not sampled"),
    ],
)
def test_refusals_are_one_sentence_in_openais_form(make, fields, param, told):
    app = make("generating")

    async def vllm(scope, receive, send):
        message = await receive()
        app.seen.append(message["body"])
        await reply(send, 422, [(b"Content-Type", b"text/plain"), (b"access-control-allow-origin", b"*")], b"no body")

    app.answer = vllm
    answer = ask(app, {**BODY, **fields})
    error = json.loads(answer.body)["error"]
    assert answer.status == 400 and answer.headers[b"content-type"] == b"application/json"
    assert answer.headers[b"access-control-allow-origin"] == b"*"  # of other middleware: a page must be able to read it
    assert (error["param"], error["code"], error["type"]) == (param, 400, "BadRequestError") and told in error["message"]
    assert app.seen == [b""] and not app.engine.calls


def test_an_echo_passes_without_rewards_and_has_no_order(make):
    app = make("generating")
    answer = ask(app, {"model": "m", "prompt": "1+1", "echo": True, "max_tokens": 0, "request_id": "own"}, TEXT)
    assert "return_token_ids" not in app.seen[0] and "reward" not in choices(answer)[0] and app.engine.kept == {}
    assert json.loads(answer.body)["id"] == "cmpl-own"
    assert "reward" in choices(ask(app, {**BODY, "echo": True}))[0]  # of a conversation: token ids change nothing there
    refused = ask(app, {"model": "m", "prompt": "1+1", "echo": True, "swift_select": "best"}, TEXT)
    assert refused.status == 400 and "echo" in json.loads(refused.body)["error"]["message"]


@pytest.mark.parametrize("n", [0, -1, 10**9, "many", [4], 1e400, 4.5])
def test_an_impossible_n_is_vllms_to_refuse(make, n):
    app = make("generating")

    async def vllm(scope, receive, send):
        app.seen.append(json.loads((await receive())["body"]))
        await reply(send, 400, JSON, b'{"error": {"message": "n"}}')

    app.answer = vllm
    assert ask(app, {**BODY, "n": n}).body == b'{"error": {"message": "n"}}'
    assert app.seen[0]["n"] == n and not app.engine.calls


@pytest.mark.parametrize("n", [None, "4", 4.0])
def test_n_may_be_written_as_vllm_reads_it(make, n):
    assert len([one for one in rewards_of(ask(make("generating"), {**BODY, "n": n})) if one is not None]) == int(n or 1)


def test_sixteen_at_once_with_one_id_get_their_own(make, expected):
    app = make("token")

    async def run():
        through = RewardMiddleware(app)
        headers = [*JSON, (b"x-request-id", b"same")]
        bodies = [{**BODY, "messages": [{"role": "user", "content": f"27+{i:02d}"}], "n": 1 + i % 4} for i in range(16)]
        answers = await asyncio.gather(*(asking(through, app, body, headers=headers) for body in bodies))
        return bodies, [rewards_of(answer) for answer in answers]

    for body, rewards in zip(*asyncio.run(run()), strict=True):
        n = body["n"]
        assert rewards == pytest.approx(expected(app, [body["messages"]] * n, app.responses[:n]), abs=1e-5)
