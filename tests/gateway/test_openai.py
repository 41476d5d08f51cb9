"""The official `openai` client, sync and async, against the gateway: what its users see."""

import asyncio
import math
import re

import openai
import pytest

from swift_rm import SwiftConfig, SwiftRewardModel, best_of_n, score
from swift_rm.gateway.local.backend import LocalBackend
from swift_rm.gateway.request.settings import Settings
from swift_rm.gateway.upstream.backend import UpstreamBackend
from swift_rm.models.load import TINY, TINY_REWARD, load_language_model, resolve
from swift_rm.tasks.homework import HomeworkTask
from tests.api.api_server import KEY, answer
from tests.gateway.running_gateway import serving

QUESTIONS = [question.prompt for question in HomeworkTask("test").questions(24, seed=3)]
ASKED = QUESTIONS[0]
BEST = "swift-best-of-16"


@pytest.fixture(scope="module")
def loaded():
    return (*load_language_model(TINY, progress=False), SwiftRewardModel.from_pretrained(resolve(TINY_REWARD)))


@pytest.fixture(scope="module")
def own(loaded):
    """What `best_of_n` gives, before a server's thread draws from the same random numbers: by rule, N, question and seed."""
    asked = [("best", 8), ("vote", 8), ("shrunk", 8), ("best", 16), ("best", 4)]
    return {
        (rule, n, seed): best_of_n(*loaded, [QUESTIONS[seed]], n=n, select=rule, seed=seed)[0]
        for rule, n in asked for seed in range(4)
    }  # fmt: skip


@pytest.fixture(scope="module")
def address(loaded, own):
    settings = Settings(model=TINY, reward_model=TINY_REWARD, max_n=32)
    backend = LocalBackend(settings, loaded)
    backend.start()
    with serving(backend, settings) as address:
        yield f"{address}/v1"


@pytest.fixture(scope="module")
def client(address):
    with openai.OpenAI(base_url=address, api_key="none", max_retries=0, timeout=60) as client:
        yield client


def test_a_reply_is_a_normal_completion_with_a_reward(client, loaded):
    reply = client.chat.completions.create(model=BEST, messages=ASKED, extra_body={"return_token_ids": True})
    choice = reply.choices[0]
    assert reply.object == "chat.completion" and reply.model == BEST and len(reply.choices) == 1
    assert choice.message.role == "assistant" and choice.message.content and choice.finish_reason == "stop"
    assert choice.reward == pytest.approx(score(*loaded, [ASKED], [choice.token_ids])[0], abs=1e-4)
    assert choice.probability == pytest.approx(loaded[2].probability([choice.reward])[0])
    assert reply.swift["rule"] == "best" and reply.swift["drawn"] == 16 and reply.swift["reward"] == choice.reward
    assert reply.usage.completion_tokens > 16 * 5, "all candidates are counted"
    assert reply.usage.prompt_tokens == len(loaded[1].apply_chat_template(ASKED, add_generation_prompt=True)["input_ids"])


@pytest.mark.parametrize(("name", "rule"), [("swift-best-of-8", "best"), ("swift-vote-8", "vote"), ("swift-shrunk-8", "shrunk")])
def test_a_seeded_request_chooses_what_best_of_n_chooses(client, own, name, rule):
    for seed, prompt in enumerate(QUESTIONS[:4]):
        choice = client.chat.completions.create(model=name, messages=prompt, seed=seed).choices[0]
        best = own[rule, 8, seed].best
        assert choice.message.content == best.text and choice.reward == pytest.approx(best.reward, abs=1e-5)


def test_n_returns_the_top_n_in_order(client, own):
    fields = {"best_of": 16, "select": "best", "return_candidates": True}
    reply = client.chat.completions.create(model=TINY, messages=ASKED, n=3, seed=0, extra_body=fields)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert [choice.message.content for choice in reply.choices] == [one.text for one in own["best", 16, 0].candidates[:3]]
    assert [one["text"] for one in reply.swift["candidates"][0]] == [one.text for one in own["best", 16, 0].candidates]


def test_the_plain_name_gives_samples_as_they_are_drawn(client, own):
    reply = client.chat.completions.create(model=TINY, messages=ASKED, n=4, seed=0)
    candidates = own["best", 4, 0].candidates
    assert sorted(choice.message.content for choice in reply.choices) == sorted(one.text for one in candidates)
    assert all(math.isfinite(choice.reward) for choice in reply.choices) and reply.swift["rule"] is None


@pytest.mark.parametrize("model", [TINY, "swift-best-of-4"])
def test_a_stream_says_what_the_whole_reply_says(client, model):
    asked = {"model": model, "messages": ASKED, "seed": 3}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == whole.choices[0].message.content and len(texts) > 3
    ends = [chunk.choices[0] for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]
    assert len(ends) == 1 and ends[0].finish_reason == "stop" and ends[0].reward == pytest.approx(whole.choices[0].reward)
    assert chunks[-1].usage == whole.usage and not chunks[-1].choices
    assert len({chunk.id for chunk in chunks}) == 1


def test_every_chunk_has_a_choice_where_nobody_asked_for_usage(client):
    for model in (TINY, "swift-best-of-2"):
        chunks = list(client.chat.completions.create(model=model, messages=ASKED, n=2, stream=True))
        assert all(len(chunk.choices) == 1 for chunk in chunks)
        assert ["swift" in chunk.model_extra for chunk in chunks] == [False] * (len(chunks) - 1) + [model != TINY]


def test_abstaining_is_a_finish_reason(client):
    for stream in (False, True):
        fields = {"abstain_below": 1.0}
        reply = client.chat.completions.create(model="swift-best-of-4", messages=ASKED, seed=0, stream=stream, extra_body=fields)
        ends = [c.choices[0] for c in reply if c.choices and c.choices[0].finish_reason] if stream else reply.choices
        said = ends[0].delta if stream else ends[0].message
        assert len(ends) == 1 and ends[0].finish_reason == "abstained" and not said.content
        assert "below 1" in said.refusal and 0 < ends[0].probability < 1
    fine = client.chat.completions.create(model="swift-best-of-4", messages=ASKED, extra_body={"abstain_below": 0.0})
    assert fine.choices[0].finish_reason == "stop"


def test_text_completions_take_text_ids_and_several_prompts(client, loaded):
    _, tokenizer, _ = loaded
    ids = [list(tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]) for prompt in QUESTIONS[:3]]
    reply = client.completions.create(model="swift-best-of-4", prompt=ids, n=2, seed=1, max_tokens=60)
    assert [choice.index for choice in reply.choices] == list(range(6)) and reply.object == "text_completion"
    for i, prompt in enumerate(QUESTIONS[:3]):
        for choice in reply.choices[2 * i : 2 * i + 2]:
            assert re.search(r"\d\d", choice.text)[0] == prompt[0]["content"][:2], "an attempt begins with its question's number"
    fields = {"abstain_below": 1.0}
    none = client.completions.create(model="swift-best-of-4", prompt=ids, n=2, max_tokens=60, extra_body=fields)
    assert [choice.index for choice in none.choices] == [0, 2, 4], "an index tells the prompt, also where some have fewer choices"
    chunks = list(client.completions.create(model=TINY, prompt=ids[0], seed=1, stream=True, max_tokens=8))
    whole = client.completions.create(model=TINY, prompt=ids[0], seed=1, max_tokens=8)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert whole.choices[0].finish_reason == "length" and whole.usage.completion_tokens == 8


def test_many_async_users_get_their_own_replies(address, loaded):
    async def ask_all():
        async with openai.AsyncOpenAI(base_url=address, api_key="none", max_retries=0, timeout=60) as client:

            async def ask(prompt, model):
                return await client.chat.completions.create(model=model, messages=prompt, extra_body={"return_token_ids": True})

            async def stream(prompt):
                chunks = await client.chat.completions.create(model=TINY, messages=prompt, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks if chunk.choices])

            asked = [ask(prompt, "swift-best-of-8" if i % 2 else TINY) for i, prompt in enumerate(QUESTIONS)]
            return await asyncio.gather(asyncio.gather(*asked), asyncio.gather(*map(stream, QUESTIONS[:8])))

    replies, streams = asyncio.run(ask_all())
    chosen = [reply.choices[0] for reply in replies]
    own = score(*loaded, QUESTIONS, [choice.token_ids for choice in chosen])
    assert [choice.reward for choice in chosen] == pytest.approx(own, abs=1e-4), "a reward belongs to its own question"
    assert all(text.endswith("</answer>") for text in streams)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"model": "gpt-4"}, openai.NotFoundError, "'gpt-4' is not there: ask for 'tiny-reasoner'"),
        ({"model": "swift-worst-of-4"}, openai.NotFoundError, "swift-RULE-N"),
        ({"model": "swift-best-of-33"}, openai.BadRequestError, "33 candidates are more than this server allows, 32"),
        ({"temperature": 0}, openai.BadRequestError, "would make all 16 candidates equal"),
        ({"n": 17}, openai.BadRequestError, "n=17 responses cannot be returned of 16"),
        ({"temperature": "hot"}, openai.BadRequestError, "temperature"),
        ({"max_tokens": 100_000}, openai.BadRequestError, "100000"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"messages": [{"role": "user", "content": "x" * 200_000}]}, openai.APIStatusError, "200000|200004 characters"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, openai.BadRequestError, "tools"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(client, changed, error, words):
    with pytest.raises(error, match=words) as caught:
        client.chat.completions.create(**{"model": BEST, "messages": ASKED, **changed})
    assert caught.value.body["message"] and caught.value.body["type"] == "invalid_request_error"


def test_models_are_listed(client):
    names = [model.id for model in client.models.list()]
    assert names[0] == TINY and BEST in names and not any(name.endswith("-64") for name in names)
    assert client.models.retrieve("swift-vote-5").id == "swift-vote-5", "any N may be asked for"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_a_token_and_a_full_house_are_errors_of_their_own(loaded):
    settings = Settings(model=TINY, reward_model=TINY_REWARD, queue=1)
    backend = LocalBackend(settings, loaded)
    backend.start()
    with serving(backend, settings, token="s3cret-token") as address:
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0).models.list()

        async def many():
            async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="s3cret-token", max_retries=0) as client:
                asked = [client.chat.completions.create(model=BEST, messages=ASKED) for _ in range(6)]
                return await asyncio.gather(*asked, return_exceptions=True)

        replies = asyncio.run(many())
    full = [reply for reply in replies if isinstance(reply, openai.RateLimitError)]
    assert full and len(full) + sum(hasattr(reply, "choices") for reply in replies) == 6


def test_what_passes_through_is_the_upstreams_byte_for_byte(api):
    api.models = [{"id": "tiny", "object": "model"}]
    api.usual = answer()
    rm = SwiftRewardModel(SwiftConfig.of_top_logprobs(0, base_model="tiny"))
    settings = Settings(model="tiny", reward_model="r", upstream=api.url)
    backend = UpstreamBackend(settings, rm)
    backend.start()
    with serving(backend, settings) as address:
        asked = {"model": "tiny", "messages": ASKED, "temperature": 0.5, "extra_body": {"odd": [1, {"a": None}]}}
        own = openai.OpenAI(base_url=api.url, api_key=KEY).chat.completions.with_raw_response.create(**asked)
        through = openai.OpenAI(base_url=f"{address}/v1", api_key="none").chat.completions.with_raw_response.create(**asked)
        assert through.content == own.content and through.parse() == own.parse()
        assert api.requests[0] == api.requests[1], "and so is the request"
        assert api.headers[1]["authorization"] == f"Bearer {KEY}", "with the gateway's key, not the client's"
        best = openai.OpenAI(base_url=f"{address}/v1", api_key="none").chat.completions.create(
            model="swift-best-of-4", messages=ASKED
        )
        assert best.choices[0].reward is not None and best.swift["drawn"] == 4
