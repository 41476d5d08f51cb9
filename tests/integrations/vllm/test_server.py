"""vLLM's own server, which nobody here wrote, with rewards in its replies: they are transformers' on the same token ids.

The last test kills the engine; each that comes before leaves it as it was.
"""

import json
import os
import re
import signal
import socket
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from swift_rm import SwiftConfig, SwiftRewardModel
from swift_rm.models.load import resolve
from tests.integrations.vllm.real_server import CONTEXT, NAME, REWARD, expected, post, questions, serve, worst_difference

pytestmark = pytest.mark.vllm
CLOSE, ODD = 1e-4, 5e-4  # the second for texts that the model has never seen the like of: there float32 itself is as far off
KEY, DEV = "a-key-of-no-value-4711", {"VLLM_SERVER_DEV_MODE": "1"}
LONG = {"ignore_eos": True, "max_tokens": 400}


@pytest.fixture(scope="module")
def generating(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward-models") / "generating"
    rm = SwiftRewardModel.from_pretrained(resolve(REWARD))
    rm.config = replace(rm.config, position="generating")
    rm.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=["token", "generating"])
def served(request, generating):
    """Serve with a reward model of each position, and with other middleware of vLLM's the second time."""
    if request.param == "token":
        with serve(REWARD, NAME, environment=DEV) as server:
            server.wait()
            yield server, REWARD, {}
    else:
        more = ("--api-key", KEY, "--enable-request-id-headers", "--reasoning-parser", "deepseek_r1")
        with serve(generating, NAME, *more, environment=DEV) as server:
            server.wait()
            yield server, generating, {"Authorization": f"Bearer {KEY}"}


@pytest.fixture
def ask(served):
    """Ask the server; a status of 200 is expected."""
    server, _, key = served

    def asked(body, path="chat/completions", headers=None):
        defaults = {"model": NAME, "temperature": 1.0, **({"max_tokens": 96} if "max_tokens" not in body else {})}
        status, reply, _ = post(f"{server.url}/v1/{path}", {**defaults, **body}, {**key, **(headers or {})})
        assert status == 200, reply
        return reply

    return asked


@pytest.fixture
def client(served):
    from openai import OpenAI

    server, _, key = served
    return OpenAI(base_url=f"{server.url}/v1", api_key=KEY if key else "none", max_retries=0)


def check(reward_model, prompt, choices, close=CLOSE):
    """Compare rewards with those of transformers."""
    assert choices
    rewards = expected(reward_model, [(choice.get("prompt_token_ids") or prompt, choice["token_ids"]) for choice in choices])
    assert [choice["reward"] for choice in choices] == pytest.approx(rewards, abs=close)
    assert all(0 < choice["probability"] < 1 for choice in choices)


def kept(server, key):
    """Return how many requests' scores the worker keeps."""
    _, reply, _ = post(f"{server.url}/collective_rpc", {"method": "kept_requests"}, key)
    return int(reply["results"][0])


def settled(server, key):
    end = time.monotonic() + 10
    while kept(server, key) and time.monotonic() < end:
        time.sleep(0.1)
    return kept(server, key)


# What does not start, or not with rewards.


def refused(*arguments, **more):
    with serve(*arguments, **more) as server:
        with pytest.raises(RuntimeError, match="did not start"):
            server.wait()
        assert server.process.returncode not in (0, None)
        return server.log()


def test_a_reward_model_of_another_base_ends_the_server_which_names_both(tmp_path):
    SwiftRewardModel(SwiftConfig(64, (0, 1), base_model="someone/other-model")).save_pretrained(tmp_path)
    log = refused(str(tmp_path), NAME)
    assert re.search(
        r"width 64 \(the reward model was trained on someone/other-model, .*but \S*tiny-reasoner has hidden size 96", log
    )


def test_pipeline_parallelism_is_refused():
    log = refused(REWARD, NAME, "--pipeline-parallel-size", "2", environment={"VLLM_CPU_OMP_THREADS_BIND": "nobind"})
    assert "pipeline_parallel_size=2: no worker sees all layers; use tensor parallelism" in log


def test_without_a_reward_model_the_server_says_how_to_name_one():
    log = refused(None, NAME)
    assert """vLLM's worker needs a reward model, --additional-config '{"swift_rm": {"reward_model": "FOLDER"}}', got {}""" in log


def test_another_worker_answers_without_rewards_and_one_line_says_why():
    with serve(REWARD, NAME, worker=False) as server:
        server.wait()
        body = {"model": NAME, "messages": questions(1)[0], "max_tokens": 8}
        for _ in range(3):
            status, reply, _ = post(f"{server.url}/v1/chat/completions", body, {"X-Request-Id": "theirs"})
            assert status == 200 and reply["id"] == "chatcmpl-theirs" and "reward" not in reply["choices"][0]
        status, reply, _ = post(f"{server.url}/v1/chat/completions", {**body, "swift_select": "best"})
        assert status == 400 and "start the server with --worker-cls swift_rm" in reply["error"]["message"]
        assert server.log().count("vLLM's answers go without rewards") == 1


# What is served.


def test_rewards_of_conversations_are_transformers(served, ask):
    server, reward_model, key = served
    if not key:
        assert worst_difference(server.url, reward_model) < CLOSE
    for messages in questions(4, seed=1):
        reply = ask({"messages": messages, "n": 8, "return_token_ids": True})
        check(reward_model, reply["prompt_token_ids"], reply["choices"])
    assert settled(server, key) == 0


def test_rewards_of_lists_of_prompts_are_transformers(served, ask):
    _, reward_model, _ = served
    for n in (1, 3):
        for prompts in (["27+15", "12+30-03", "99-01"], [[1, 3, 19, 24, 27, 18], [3, 22]], [3, 22, 27, 23], "27+15"):
            reply = ask({"prompt": prompts, "n": n, "return_token_ids": True}, "completions")
            lists = isinstance(prompts, list) and not isinstance(prompts[0], int)
            assert len(reply["choices"]) == n * (len(prompts) if lists else 1)
            check(reward_model, None, reply["choices"], ODD)


def test_rewards_under_other_settings_are_transformers(served, ask):
    _, reward_model, _ = served
    (messages,) = questions(1, seed=2)
    for settings in (
        {"max_tokens": 1}, {"max_tokens": 2}, {"stop": ["+", "ok"]}, {"stop_token_ids": [36]}, {"temperature": 0.3, "top_k": 5},
        {"logprobs": True, "top_logprobs": 2}, {"min_tokens": 90, "max_tokens": 90}, {"ignore_eos": True, "max_tokens": 300},
        {"repetition_penalty": 1.3}, {"echo": True}, {"prompt_logprobs": 1}, {"logit_bias": {"36": 5}},
    ):  # fmt: skip
        reply = ask({"messages": messages, "n": 3, "return_token_ids": True, **settings})
        check(reward_model, reply["prompt_token_ids"], reply["choices"], ODD)
    reply = ask({"prompt": "27+15", "logprobs": 2, "n": 2, "return_token_ids": True}, "completions")
    check(reward_model, None, reply["choices"], ODD)


def test_a_response_that_fills_the_context(served, ask):
    _, reward_model, key = served
    reply = ask({"messages": questions(1)[0], "ignore_eos": True, "max_tokens": None, "n": 2, "return_token_ids": True})
    ids = reply["prompt_token_ids"]
    assert [len(ids) + len(choice["token_ids"]) for choice in reply["choices"]] == [CONTEXT] * 2
    if key:  # its reward reads the states that produced the tokens
        check(reward_model, ids, reply["choices"], ODD)
    else:
        assert [choice["reward"] for choice in reply["choices"]] == [None] * 2


def test_an_echo_is_vllms_own(ask):
    reply = ask({"prompt": "27+15", "echo": True, "max_tokens": 4}, "completions")
    assert reply["choices"][0]["text"].startswith("27+15") and "reward" not in reply["choices"][0]
    assert ask({"prompt": "27+15", "echo": True, "max_tokens": 0}, "completions")["choices"][0]["text"] == "27+15"


def test_a_reply_is_vllms_own_otherwise(ask):
    reply = ask({"messages": questions(1)[0], "n": 2}, headers={"X-Request-Id": "theirs"})
    assert reply["id"] == "chatcmpl-theirs" and reply["prompt_token_ids"] is None
    for choice in reply["choices"]:
        assert choice["token_ids"] is None
        own = {"index", "message", "logprobs", "finish_reason", "stop_reason", "token_ids", "routed_experts"}
        assert set(choice) == own | {"reward", "probability"}


def test_sixteen_clients_with_one_id_get_their_own_rewards(served, ask):
    server, reward_model, key = served
    asked = [(messages, 1 + i % 4) for i, messages in enumerate(questions(48, seed=9))]

    def client(one):
        messages, n = one
        body = {"messages": messages, "n": n, "return_token_ids": True, "max_tokens": 40}
        return ask(body, headers={"X-Request-Id": "same"})

    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(client, asked))
    pairs, rewards = [], []
    for (_, n), reply in zip(asked, replies, strict=True):
        assert len(reply["choices"]) == n and reply["id"] == "chatcmpl-same"
        pairs += [(reply["prompt_token_ids"], choice["token_ids"]) for choice in reply["choices"]]
        rewards += [choice["reward"] for choice in reply["choices"]]
    assert rewards == pytest.approx(expected(reward_model, pairs), abs=CLOSE)
    assert settled(server, key) == 0


def test_a_rule_orders_the_choices(ask):
    reply = ask({"messages": questions(1)[0], "n": 8, "swift_select": "best"})
    rewards = [choice["reward"] for choice in reply["choices"]]
    assert rewards == sorted(rewards, reverse=True) and [choice["index"] for choice in reply["choices"]] == list(range(8))


def test_the_openai_client_reads_replies_and_streams(served, client):
    _, reward_model, _ = served
    (messages,) = questions(1, seed=4)
    usual = {"model": NAME, "max_tokens": 96, "extra_body": {"return_token_ids": True}}
    reply = client.chat.completions.create(messages=messages, n=2, **usual)
    check(reward_model, reply.prompt_token_ids, [choice.to_dict() for choice in reply.choices])
    for options in ({}, {"stream_options": {"include_usage": True}}):
        texts, ids, rewards, prompt = ["", ""], [[], []], [None, None], None
        for chunk in client.chat.completions.create(messages=messages, n=2, stream=True, **options, **usual):
            prompt = getattr(chunk, "prompt_token_ids", None) or prompt
            if chunk.choices:
                content = chunk.choices[0].delta.content  # as everybody reads it
                texts[chunk.choices[0].index] += content or ""
            for choice in chunk.choices:
                ids[choice.index] += getattr(choice, "token_ids", None) or []
                if hasattr(choice, "reward"):
                    rewards[choice.index] = choice.reward
                    assert 0 < choice.probability < 1 and choice.finish_reason is None
        assert rewards == pytest.approx(expected(reward_model, [(prompt, one) for one in ids]), abs=CLOSE) and all(texts)
        ids, rewards, prompts = {}, {}, {}
        for chunk in client.completions.create(prompt=["27+15", "99-01"], n=2, stream=True, **options, **usual):
            for choice in chunk.choices:
                assert isinstance(choice.text, str)
                ids.setdefault(choice.index, []).extend(getattr(choice, "token_ids", None) or [])
                prompts[choice.index] = getattr(choice, "prompt_token_ids", None) or prompts[choice.index]
                rewards |= {choice.index: choice.reward} if hasattr(choice, "reward") else {}
        pairs = [(prompts[index], ids[index]) for index in range(4)]
        assert [rewards[index] for index in range(4)] == pytest.approx(expected(reward_model, pairs), abs=ODD)


def test_the_openai_clients_own_collector_of_streams_takes_the_chunk(client):
    with client.chat.completions.stream(model=NAME, messages=questions(1)[0], max_tokens=96, n=2) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert "chunk" in kinds and [choice.finish_reason for choice in final.choices] == ["stop", "stop"]
    assert all(choice.message.content is not None or choice.message.reasoning for choice in final.choices)


def test_a_streams_chunks_are_vllms_own(served, ask):
    server, _, key = served

    def stream(**more):
        body = {"model": NAME, "messages": questions(1)[0], "max_tokens": 60, "temperature": 0, "stream": True, **more}
        headers = {"Content-Type": "application/json", **key}
        request = urllib.request.Request(f"{server.url}/v1/chat/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as reply:
            *events, done, nothing = reply.read().decode().split("\n\n")
        assert (done, nothing) == ("data: [DONE]", "")
        return [json.loads(event.removeprefix("data: ")) for event in events]

    *plain, own = stream()
    *with_ids, _ = stream(return_token_ids=True)
    assert "reward" in own["choices"][0] and own["choices"][0]["delta"] == {}
    assert not any(chunk.get("prompt_token_ids") or choice.get("token_ids") for chunk in plain for choice in chunk["choices"])
    said = [choice["delta"] for chunk in plain for choice in chunk["choices"]]
    whole = [choice["delta"] for chunk in with_ids for choice in chunk["choices"]]
    assert said == [delta for delta in whole if delta != {}] or said == whole
    if key:  # with a parser vLLM sends chunks for token ids alone
        assert len(whole) > len(said)


def test_thoughts_that_are_hidden_have_no_reward(served, ask):
    if served[2]:
        reply = ask({"messages": questions(1)[0], "include_reasoning": False, "return_token_ids": True})
        assert reply["choices"][0]["token_ids"] is None and reply["choices"][0]["reward"] is None


def test_errors_are_vllms_own(served):
    server, _, key = served
    chat, messages = f"{server.url}/v1/chat/completions", questions(1)[0]
    for body, status, told in (
        ({"model": "another", "messages": messages}, 404, "The model `another` does not exist."),
        ({"model": NAME}, 400, "messages"),
        ({"model": NAME, "messages": messages, "n": 0}, 400, "n must be at least 1"),
        ({"model": NAME, "messages": messages, "n": 10**9}, 400, "n must be at most"),
        ({"model": NAME, "messages": messages, "max_tokens": 10**6}, 400, "max"),
        (b"{", 400, "JSON decode error"),
        (b"[1]", 400, ""),
        ({"model": NAME, "messages": messages, "use_beam_search": True}, 400, "beams are searched for"),
        (
            {"model": NAME, "messages": messages, "swift_select": "worst"},
            400,
            "the rules are shrunk, best, majority, vote, borda",
        ),
        ({"model": NAME, "messages": messages, "swift_select": "best", "stream": True}, 400, "do not go together"),
    ):
        answered, reply, _ = post(chat, body, key)
        assert answered == status and told in str(reply["error"]["message"]), (body, reply)
    answered, reply, _ = post(chat, {"model": NAME, "messages": messages}, {**key, "Content-Type": "text/plain"})
    assert answered in (400, 415, 422) and "error" in reply
    assert post(f"{server.url}/v1/nothing", {}, key)[0] == 404
    if key:
        assert post(chat, {"swift_select": "worst"})[0] == 401
        _, _, headers = post(chat, {"model": NAME, "messages": messages, "max_tokens": 1}, {**key, "X-Request-Id": "theirs"})
        assert headers["X-Request-Id"] == "theirs"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_who_leaves_leaves_nothing_in_the_worker(served, ask, stream):
    server, _, key = served
    host, port = server.url.removeprefix("http://").split(":")
    for _ in range(6):
        body = json.dumps({"model": NAME, "messages": questions(1)[0], "n": 8, "stream": stream, **LONG}).encode()
        lines = "".join(f"{name}: {value}\r\n" for name, value in key.items())
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n{lines}"
        with socket.create_connection((host, int(port))) as line:
            line.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            if stream:
                assert b"200" in line.recv(4096)
            time.sleep(0.3)
    time.sleep(0.5)
    ask({"messages": questions(1)[0]})  # so that what the worker has is written down
    assert settled(server, key) == 0


def engine_core(server):
    """Return the process of a server's engine."""
    for folder in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            if folder.name.isdigit() and (folder / "cmdline").read_text().startswith("VLLM::EngineCore"):
                parent = int(re.search(r"PPid:\t(\d+)", (folder / "status").read_text())[1])
                if parent == server.process.pid:
                    return int(folder.name)
    raise RuntimeError("the server has no engine")


def test_when_the_engine_dies_clients_hear_of_it_within_seconds(served):
    server, _, key = served

    def client(stream):
        body = {"model": NAME, "messages": questions(1)[0], "n": 8, "stream": stream, **LONG}
        request = urllib.request.Request(
            f"{server.url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json", **key}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                said = reply.read()
        except (OSError, urllib.error.HTTPError) as error:
            return getattr(error, "code", 500), time.monotonic()
        return (500 if b'"error"' in said else 200), time.monotonic()

    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(client, number % 2 == 0) for number in range(16)]
        time.sleep(0.5)
        os.kill(engine_core(server), signal.SIGKILL)
        killed = time.monotonic()
        answers = [one.result() for one in asked]
    assert all(at - killed < 10 for _, at in answers)
    hit = [status for status, at in answers if at > killed + 0.5 or status != 200]
    assert len(hit) >= 8 and set(hit) == {500}
    assert server.process.wait(60) is not None
