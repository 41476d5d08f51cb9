"""Replies without rewards, or with some missing: the engine fails, states are lost, the model is another, a client leaves."""

import asyncio
import json
import logging
import math
import time

import numpy as np
import pytest

from swift_rm import SwiftConfig, SwiftRewardModel
from swift_rm.integrations.vllm.server import middleware, served_rewards
from swift_rm.integrations.vllm.server.middleware import RewardMiddleware
from swift_rm.tokens.encoding import encode_prompt
from tests.integrations.vllm.fake_server import JSON, ask, asking, reply
from tests.integrations.vllm.middleware.replies import BODY, LOG, MESSAGES, choices, chunks, rewards_of


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
