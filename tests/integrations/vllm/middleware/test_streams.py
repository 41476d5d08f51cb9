"""Rewards in streamed replies of vLLM's server: one more chunk before the end."""

import json

import pytest

from swift_rm.tokens.encoding import encode_prompt
from tests.integrations.vllm.fake_server import CHAT, TEXT, ask, event
from tests.integrations.vllm.middleware.replies import BODY, MESSAGES, chunks


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
