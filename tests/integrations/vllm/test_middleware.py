"""Rewards in the replies of vLLM's server, without vLLM: an application and an engine that do as its own do."""

import asyncio
import json
import logging
import math
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from swift_rm import SwiftConfig, SwiftRewardModel, score
from swift_rm.integrations.vllm.server import engine_calls, middleware, served_rewards
from swift_rm.integrations.vllm.server.middleware import RewardMiddleware
from swift_rm.models.load import load_language_model, resolve
from swift_rm.selection.rules import select
from swift_rm.tasks.answers import find_answer
from swift_rm.tokens.encoding import encode_prompt
from tests.integrations.vllm.fake_server import CHAT, JSON, TEXT, FakeApp, FakeEngine, ask, asking, event, reply

MESSAGES = [{"role": "user", "content": "27+15-08"}]
TEXTS = [
    "<think>27+15=42, 42-08=34, </think><answer>34</answer>",
    "<think>27+15=32, 32-08=24, </think><answer>24</answer>",
    "<think>so 27+15=42, wait </think><answer>34</answer>",
    "<answer>24</answer>",
]
BODY = {"model": "m", "messages": MESSAGES, "n": 4}
LOG = "vllm.swift_rm"


@pytest.fixture(scope="module")
def transformers():
    return load_language_model(progress=False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = tmp_path_factory.mktemp("reward-models")
    for name, changes in {
        "token": {}, "generating": {"position": "generating"}, "marker": {"position": "generating", "region": "after:</think>"},
    }.items():  # fmt: skip
        rm = SwiftRewardModel.from_pretrained(resolve("tiny-reasoner-reward"))
        rm.config = replace(rm.config, **changes)
        rm.save_pretrained(made / name)
    return made


@pytest.fixture(autouse=True)
def no_vllm(monkeypatch):
    monkeypatch.setattr(engine_calls, "one_token", lambda: "one token")


@pytest.fixture
def make(transformers, folders):
    """Make an application whose engine has a reward model of a kind."""

    def made(kind="token", texts=TEXTS, **more):
        model, tokenizer = transformers
        engine = FakeEngine(model, tokenizer, SwiftRewardModel.from_pretrained(folders / kind), folders / kind)
        return FakeApp(engine, [[*encode_prompt(tokenizer, text), tokenizer.eos_token_id] for text in texts], **more)

    return made


@pytest.fixture
def expected(transformers):
    def rewards(app, prompts, responses):
        return score(*transformers, app.engine.rm, prompts, responses)

    return rewards


def choices(answer):
    assert answer.status == 200
    return json.loads(answer.body)["choices"]


def rewards_of(answer):
    return [choice["reward"] for choice in choices(answer)]


def chunks(answer):
    events = answer.body.decode().split("\n\n")
    assert events.pop() == "" and events.pop() == "data: [DONE]"
    return [json.loads(one.removeprefix("data: ")) for one in events]


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


@pytest.mark.parametrize("kind", ["token", "generating"])
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_stream_has_one_more_chunk(make, expected, kind, path):
    app = make(kind)
    asked = BODY if path == CHAT else {"model": "m", "prompt": ["27+15", "12+30-03"], "n": 2}
    answer = ask(app, {**asked, "stream": True, "stream_options": {"include_usage": True}}, path)
    plain = make(kind)
    said = chunks(
        ask(plain, {**asked, "stream": True, "stream_options": {"include_usage": True}}, path, middleware=plain, pieces=1)
    )
    got = chunks(answer)
    own = got.pop(-2)
    for chunk in (*got, *said):
        del chunk["id"]
    assert got == said and own.pop("id").startswith("chatcmpl-" if path == CHAT else "cmpl-")
    empty = {"delta": {}} if path == CHAT else {"text": ""}
    prompts = [MESSAGES] * 4 if path == CHAT else ["27+15"] * 2 + ["12+30-03"] * 2
    rewards = [choice.pop("reward") for choice in own["choices"]]
    assert rewards == pytest.approx(expected(app, prompts, app.responses), abs=1e-5)
    for index, choice in enumerate(own["choices"]):
        assert choice.pop("probability") == pytest.approx(app.engine.rm.probability([rewards[index]])[0])
        assert choice == {"index": index, **empty, "logprobs": None, "finish_reason": None}
    assert own == {**own, "created": 7, "model": "m", "object": said[0]["object"]}
    assert app.engine.kept == {}


def test_a_streams_token_ids_are_the_clients_who_asks_for_them(make):
    app = make("generating")
    got = chunks(ask(app, {**BODY, "n": 1, "stream": True, "return_token_ids": True}))
    ids = [token for chunk in got for choice in chunk["choices"] for token in choice.get("token_ids") or ()]
    assert ids == app.responses[0] and got[0]["prompt_token_ids"] == encode_prompt(app.engine.tokenizer, MESSAGES)
    assert "reward" in got[-1]["choices"][0]


def streaming(app, events, size=None):
    """Let the application answer with these events, cut into pieces of a size."""

    async def vllm(scope, receive, send):
        request = json.loads((await receive())["body"])
        name = f"chatcmpl-{dict(scope['headers'])[b'x-request-id'].decode()}"
        if name not in app.engine.kept:
            app.engine.sampled(name, encode_prompt(app.engine.tokenizer, MESSAGES), app.responses[0])
        assert request["stream"]
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream; charset=x")]}
        )
        data = b"".join(one if isinstance(one, bytes) else event({"id": name, **one}) for one in events)
        for start in range(0, len(data), size or len(data)):
            await send({"type": "http.response.body", "body": data[start : start + (size or len(data))], "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    app.answer = vllm


def chunk_of(ids, text="x", **more):
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None, "token_ids": ids, **more}]}


@pytest.mark.parametrize("size", [1, 7, None])
def test_events_may_come_in_any_pieces_with_comments_between(make, expected, size):
    app = make("generating")
    first, *rest = app.responses[0]
    events = [
        b": keep-alive\n\n",
        chunk_of([first], "ü\u2028\x85"),
        b": keep-alive\n\n",
        chunk_of(rest, finish_reason="stop"),
        b"data: [DONE]\n\n",
    ]
    streaming(app, events, size)
    answer = ask(app, {**BODY, "n": 1, "stream": True})
    parts = answer.body.decode().split("\n\n")
    assert parts[0] == parts[2] == ": keep-alive" and parts[-1] == "" and len(parts) == 7
    assert json.loads(parts[1][6:])["choices"][0] == {**chunk_of(None, "ü\u2028\x85")["choices"][0]}
    (reward,) = expected(app, [MESSAGES], app.responses[:1])
    assert json.loads(parts[4][6:])["choices"][0]["reward"] == pytest.approx(reward, abs=1e-5)


def test_chunks_that_are_there_for_the_token_ids_alone_do_not_come(make, expected):
    app = make("generating")
    first, *rest = app.responses[0]
    alone = {"choices": [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": None, "token_ids": [first]}]}
    streaming(app, [alone, chunk_of(rest, finish_reason="stop"), b"data: [DONE]\n\n"])
    got = chunks(ask(app, {**BODY, "n": 1, "stream": True}))
    assert [chunk["choices"][0]["delta"] for chunk in got] == [{"content": "x"}, {}]
    (reward,) = expected(app, [MESSAGES], app.responses[:1])
    assert got[1]["choices"][0]["reward"] == pytest.approx(reward, abs=1e-5)
    got = chunks(ask(app, {**BODY, "n": 1, "stream": True, "return_token_ids": True}))
    assert got[0]["choices"][0]["token_ids"] == [first]


def test_an_error_in_a_stream_ends_it_as_vllm_ends_it(make):
    app, error = make("generating"), b'data: {"error": {"message": "EngineCore", "code": 500}}\n\n'
    streaming(app, [chunk_of(app.responses[0][:2]), error, b"data: [DONE]\n\n"])
    answer = ask(app, {**BODY, "n": 1, "stream": True})
    assert answer.body.endswith(error + b"data: [DONE]\n\n") and b"reward" not in answer.body
    streaming(app, [b"data: nonsense\n\n", b"data: [1]\n\n", b"cut o"])
    assert ask(app, {**BODY, "n": 1, "stream": True}).body == b"data: nonsense\n\ndata: [1]\n\ncut o"


def test_a_choice_that_did_not_end_has_no_reward(make):
    app = make("generating")
    streaming(app, [chunk_of(app.responses[0]), b"data: [DONE]\n\n"])
    assert len(chunks(ask(app, {**BODY, "n": 1, "stream": True}))) == 1


@pytest.mark.parametrize(
    ("status", "kind", "body"),
    [
        (400, b"application/json", b'{"error": {"message": "bad", "choices": []}}'),
        (401, b"application/json", b'{"error":"Unauthorized"}'),
        (500, b"application/json", b'{"choices": [] }'),
        (200, b"text/plain", b"  {}"),
        (200, b"application/json", b"null"),
        (200, b"application/json", b"{cut"),
        (200, b"application/json", b' { "object" : "error" } '),
    ],
)
def test_what_is_no_completion_passes_byte_for_byte(make, status, kind, body):
    app = make("generating")

    async def vllm(scope, receive, send):
        await receive()
        await reply(send, status, [(b"content-type", kind), (b"x-of-vllm", b"1")], body)

    app.answer = vllm
    answer = ask(app, BODY)
    assert (answer.status, answer.body, answer.headers[b"content-type"]) == (status, body, kind)
    assert answer.headers[b"x-of-vllm"] == b"1"


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'"text"', b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000])
def test_a_body_that_is_no_json_object_reaches_vllm_byte_for_byte(make, body):
    app, got = make("generating"), []

    async def vllm(scope, receive, send):
        got.append((await receive())["body"])
        await reply(send, 400, JSON, b'{"error": {}}')

    app.answer = vllm
    assert ask(app, body).body == b'{"error": {}}' and got == [body]
    odd = json.dumps(BODY, indent=3).encode()
    ask(app, odd, headers=[(b"content-type", b"text/plain")])
    assert got[1] == odd


@pytest.mark.parametrize(
    ("path", "method"), [("/v1/models", "GET"), (CHAT, "GET"), ("/v1/responses", "POST"), ("/v1/chat/completions/batch", "POST")]
)
def test_other_requests_are_none_of_its_business(make, path, method):
    app, got = make("generating"), []

    async def vllm(scope, receive, send):
        got.append((scope, (await receive())["body"]))
        await reply(send, 200, JSON, b'{"choices": [{"index": 0}]}')

    app.answer = vllm
    answer = ask(app, b' {"swift_select": 1}', path, method=method, pieces=1)
    assert answer.body == b'{"choices": [{"index": 0}]}' and got[0][1] == b' {"swift_select": 1}'
    assert got[0][0]["headers"] == JSON


def test_what_is_not_http_and_an_application_without_an_engine_pass(make):
    app, seen = make("generating"), []

    async def vllm(scope, receive, send):
        seen.append((scope, receive, send))

    app.answer = vllm
    given = [({"type": kind}, object(), object()) for kind in ("lifespan", "websocket")]
    for scope, receive, send in given:
        asyncio.run(RewardMiddleware(app)(scope, receive, send))
    app.state = SimpleNamespace()
    given.append(({"type": "http", "path": CHAT, "method": "POST", "app": app}, object(), object()))
    asyncio.run(RewardMiddleware(app)(*given[-1]))
    assert all(a is b for one, other in zip(seen, given, strict=True) for a, b in zip(one, other, strict=True))


def test_a_root_path_is_no_part_of_the_route(make):
    app = make("generating")
    app.answer = None
    assert "reward" in choices(ask(app, {"model": "m", "prompt": "1+1"}, TEXT, root="/llm"))[0]


def test_who_has_no_key_sends_no_body(make):
    app = make("generating")

    async def locked(scope, receive, send):
        await reply(send, 401, JSON, b'{"error":"Unauthorized"}')

    app.answer = locked
    answer = ask(app, BODY, pieces=4)
    assert answer.status == 401 and answer.left == 4  # pieces that nobody read


def test_what_the_server_says_after_the_body_reaches_vllm(make):
    app, heard = make("generating"), []

    async def vllm(scope, receive, send):
        heard.extend([await receive(), await receive()])
        await reply(send, 200, JSON, b"null")

    app.answer = vllm
    messages = [{"type": "http.request", "body": b'{"n":'}, {"type": "http.disconnect"}, {"type": "http.disconnect"}]

    async def run(parts):
        async def receive():
            return parts.pop(0)

        async def send(message):
            pass

        scope = {"type": "http", "method": "POST", "path": CHAT, "headers": JSON, "app": app}
        await RewardMiddleware(app)(scope, receive, send)

    messages[0]["more_body"] = True
    asyncio.run(run(list(messages)))
    assert heard == [{"type": "http.disconnect"}] * 2
    heard.clear()
    asyncio.run(run([{"type": "http.request", "body": json.dumps(BODY).encode()}, {"type": "http.disconnect"}]))
    assert json.loads(heard[0]["body"])["n"] == 4 and heard[1] == {"type": "http.disconnect"}


@pytest.mark.parametrize("fails", ["hangs", "dies", Exception("Call to collective_rpc method failed: no memory")])
def test_an_answer_waits_for_its_reward_so_long_and_no_longer(make, monkeypatch, caplog, fails):
    app = make("generating")
    monkeypatch.setattr(served_rewards, "LIMIT_S", 0.5)
    app.engine.fails = fails
    start = time.monotonic()
    answer = ask(app, BODY)
    assert time.monotonic() - start < 2
    assert [(one["reward"], one["probability"], one["token_ids"]) for one in choices(answer)] == [(None, None, None)] * 4
    (record,) = [one for one in caplog.records if one.name == LOG]
    told = {"hangs": "did not answer within 0.5 s", "dies": "vLLM's engine died"}.get(str(fails), "Exception: Call to")
    assert told in record.getMessage() and "goes without rewards" in record.getMessage()
    stream = chunks(ask(app, {**BODY, "stream": True}))
    assert [choice["reward"] for choice in stream[-1]["choices"]] == [None] * 4


def test_a_request_for_the_last_state_that_fails_leaves_no_reward(make, caplog):
    app = make("token")

    async def generate(prompt, params, name):
        raise ValueError("the queue is full")
        yield

    app.engine.generate = generate
    assert rewards_of(ask(app, BODY)) == [None] * 4
    assert "ValueError: the queue is full" in caplog.text


def test_scores_that_are_not_all_there_are_no_reward(make):
    for kind in ("token", "generating"):
        app = make(kind)
        sampled = app.engine.sampled
        app.engine.sampled = lambda name, prompt, response, sampled=sampled: sampled(name, prompt, response, places=3)
        answer = choices(ask(app, {**BODY, "n": 1}))
        assert answer[0]["reward"] is None and "reward_flag" not in answer[0] and not app.engine.generated
        app.engine.sampled = lambda *_: None
        assert rewards_of(ask(app, {**BODY, "n": 1})) == [None]


@pytest.mark.parametrize("stream", [False, True])
def test_a_sample_out_of_step_has_no_reward_and_the_log_says_why(make, caplog, monkeypatch, stream):
    """The worker's own reason, states missing, states too many, and the last token's state missing: each by name."""
    monkeypatch.setattr("swift_rm.integrations.vllm.versions.version.installed_version", lambda: "0.33.0")
    caplog.set_level(logging.WARNING, LOG)
    app = make("generating")
    sampled = app.engine.sampled

    def wrong(name, prompt, response):
        sampled(name, prompt, response)
        scores = app.engine.kept[name]
        changed = {"0": scores, "1": "it skipped a step", "2": scores[:-1], "3": np.concatenate([scores] * 2)}
        app.engine.kept[name] = changed[name[0]]

    app.engine.sampled = wrong
    app.finish = "length"
    answer = ask(app, {**BODY, "stream": stream})
    found = chunks(answer)[-1]["choices"] if stream else choices(answer)
    assert [choice["reward"] is None for choice in found] == [False, True, True, True]
    tokens = [len(response) for response in app.responses]
    assert [record.getMessage().partition("reward: ")[2] for record in caplog.records] == [
        "it skipped a step",
        f"vLLM 0.33.0: its worker has scores of {tokens[2] - 1} of a sample's {tokens[2]} tokens",
        f"vLLM 0.33.0: its worker has scores of {2 * tokens[3]} of a sample's {tokens[3]} tokens",
    ]


def test_a_last_token_without_a_state_is_told(make, caplog, monkeypatch):
    monkeypatch.setattr("swift_rm.integrations.vllm.versions.version.installed_version", lambda: "0.33.0")
    caplog.set_level(logging.WARNING, LOG)
    app = make("token")
    sampled = app.engine.sampled
    for kept, said in (
        (None, "vLLM 0.33.0 computed no state at a sample's last token"),
        ("it skipped a step", "it skipped a step"),
    ):

        def lost(name, prompt, response, kept=kept):
            sampled(name, prompt, response)
            if name.startswith("after-"):
                app.engine.kept.pop(name)
                app.engine.kept.update({} if kept is None else {name: kept})

        app.engine.sampled = lost
        assert rewards_of(ask(app, {**BODY, "n": 1})) == [None]
        assert said in caplog.records[-1].getMessage()


def test_states_that_are_not_finite_are_null_and_told(make):
    app = make("generating")
    for broken in (np.nan, np.inf):
        sampled = app.engine.sampled

        def breaking(name, prompt, response, sampled=sampled, broken=broken):
            sampled(name, prompt, response)
            if name.startswith("1_"):
                app.engine.kept[name] = np.full_like(app.engine.kept[name], broken)

        app.engine.sampled = breaking
        answer = choices(ask(app, BODY))
        assert answer[1]["reward"] is None and answer[1]["probability"] is None and answer[1]["reward_flag"] == "not_finite"
        assert math.isfinite(answer[0]["reward"]) and "reward_flag" not in answer[0]


def test_hidden_token_ids_are_no_reward(make):
    app = make("generating")

    async def vllm(scope, receive, send):
        await receive()
        choice = {"index": 0, "message": {"content": "x"}, "token_ids": None}
        await reply(send, 200, JSON, json.dumps({"id": "chatcmpl-1", "choices": [choice]}).encode())

    app.answer = vllm
    answer = choices(ask(app, {**BODY, "n": 1}))
    assert answer == [{"index": 0, "message": {"content": "x"}, "token_ids": None, "reward": None, "probability": None}]


def test_the_last_state_is_asked_for_where_the_prompts_token_ids_are_all_of_it(make, expected):
    app = make("token")
    assert None not in rewards_of(ask(app, {**BODY, "cache_salt": "pepper", "n": 1}))
    assert [prompt["cache_salt"] for prompt in app.engine.generated] == ["pepper"]
    parts = [{"role": "user", "content": [{"type": "text", "text": "27+15-08"}]}]
    picture = [*MESSAGES, {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]
    app.reply = lambda chat, body, made=app.reply: made(chat, {**body, "messages": MESSAGES})
    assert None not in rewards_of(ask(app, {**BODY, "messages": parts}))
    assert rewards_of(ask(app, {**BODY, "messages": picture})) == [None] * 4
    other = make("generating")
    other.reply = lambda chat, body, made=other.reply: made(chat, {**body, "messages": MESSAGES})
    assert None not in rewards_of(ask(other, {**BODY, "messages": picture}))


def test_a_response_that_fills_the_context_has_no_state_at_its_last_token(make):
    app = make("token")
    lengths = [len(encode_prompt(app.engine.tokenizer, MESSAGES)) + len(response) for response in app.responses]
    app.engine.vllm_config.model_config.max_model_len = max(lengths)
    assert [reward is None for reward in rewards_of(ask(app, BODY))] == [length == max(lengths) for length in lengths]


def test_adapters_are_other_models(make):
    app = make("generating", lora=["an-adapter"])
    assert rewards_of(ask(app, {**BODY, "model": "an-adapter"})) == [None] * 4
    assert rewards_of(ask(app, BODY)) != [None] * 4
    assert app.engine.kept == {}


@pytest.mark.parametrize(("worker", "told"), [("auto", "vLLM's worker is 'auto', which scores nothing"), (None, "trained on")])
def test_without_rewards_answers_are_vllms_own_and_one_warning_says_why(make, caplog, worker, told):
    app, got = make("generating"), []
    if worker is None:
        app.engine.vllm_config.model_config.hf_text_config.num_hidden_layers = 7
    else:
        app.engine.vllm_config.parallel_config.worker_cls = worker

    async def vllm(scope, receive, send):
        got.append((scope["headers"], (await receive())["body"]))
        await reply(send, 200, JSON, b' {"choices": []}')

    app.answer, through = vllm, RewardMiddleware(app)
    raw, headers = json.dumps({**BODY, "use_beam_search": True}).encode(), [*JSON, (b"x-request-id", b"theirs")]
    for _ in range(3):
        assert ask(app, raw, headers=headers, middleware=through).body == b' {"choices": []}'
    assert got == [(headers, raw)] * 3
    (record,) = [one for one in caplog.records if one.name == LOG]
    assert record.levelno == logging.WARNING and told in record.getMessage() and record.getMessage().count("\n") == 0
    refused = ask(app, {**BODY, "swift_select": "best"}, middleware=through)
    assert refused.status == 400 and told in json.loads(refused.body)["error"]["message"]


def test_a_marker_needs_a_tokenizer(make, caplog):
    app = make("marker")
    app.engine.renderer.tokenizer = None
    app.answer = lambda scope, receive, send: reply(send, 200, JSON, b"{}")
    assert ask(app, BODY).body == b"{}" and "needs a tokenizer" in caplog.text


def test_a_reward_model_of_logits_needs_vllm_to_refuse_what_changes_them(make, caplog, transformers, tmp_path):
    app, config = make("generating"), SwiftConfig.of_logits(transformers[0].config.vocab_size)
    SwiftRewardModel(config).save_pretrained(tmp_path)
    app.engine.vllm_config.additional_config["swift_rm"]["reward_model"] = str(tmp_path)
    assert "reward" not in choices(ask(app, BODY))[0]
    assert "--logits-processors swift_rm.integrations.vllm:LogitsReward" in caplog.text
    app.engine.vllm_config.model_config.logits_processors = ["swift_rm.integrations.vllm:LogitsReward"]
    assert "reward" in choices(ask(app, BODY))[0]


def test_the_reward_model_is_loaded_once_and_not_by_a_client_who_leaves(make, monkeypatch):
    app, loaded = make("generating"), []
    real = served_rewards.ServedRewards

    class Slow(real):
        def __init__(self, engine):
            time.sleep(0.2)
            loaded.append(engine)
            super().__init__(engine)

    monkeypatch.setattr(middleware, "ServedRewards", Slow)
    monkeypatch.setattr("swift_rm.integrations.vllm.server.asgi_messages.ServedRewards", real)

    async def run():
        through = RewardMiddleware(app)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asking(through, app, BODY), 0.05)
        answers = await asyncio.gather(*(asking(through, app, BODY) for _ in range(8)))
        return [rewards_of(answer) for answer in answers]

    first, *others = asyncio.run(run())
    assert all(other == first for other in others) and None not in first and len(loaded) <= 2


def test_a_client_who_leaves_leaves_nothing_behind(make):
    for stream in (True, False):
        app = make("generating")

        async def leaving(scope, receive, send, app=app, stream=stream):
            body = json.loads((await receive())["body"])
            head, whole = app.reply(True, body)
            if not stream:  # so vLLM answers those who have left
                return await reply(send, 200, JSON, b"null")
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
            await send({"type": "http.response.body", "body": next(app.events(True, body, head, whole)), "more_body": True})
            raise asyncio.CancelledError

        app.answer = leaving

        async def run(app=app, stream=stream):
            through, gone = RewardMiddleware(app), pytest.raises(asyncio.CancelledError)
            if stream:
                with gone:
                    await asking(through, app, {**BODY, "stream": True})
            else:
                await asking(through, app, BODY)
            await asyncio.sleep(0.05)
            return through

        asyncio.run(run())
        assert app.engine.kept == {} and len(app.engine.calls) == 1 and len(app.engine.calls[0]) == 4


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
