"""The gateway in front of llama.cpp's own server, which nobody here wrote, asked with the official client."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from swift_rm import SwiftConfig, fit
from swift_rm.gateway.request.settings import Settings
from swift_rm.gateway.upstream.backend import UpstreamBackend
from swift_rm.tasks.homework import HomeworkTask
from tests.gateway.running_gateway import serving
from tests.scripts import ROOT

pytestmark = pytest.mark.servers
KEY, NAME, TOP = "a-key-of-no-value-4711", "tiny-reasoner", 20
OF_ITS_OWN = ("id", "created", "timings")  # what differs between two replies to one request
FIXED = {"temperature": 0, "seed": 3, "max_tokens": 40, "extra_body": {"cache_prompt": False}}  # a cache is counted in usage
PLAIN = {"top_k": 0, "min_p": 0}


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """Yield clients of the upstream and of a gateway in front of it, with a head trained on the upstream's replies."""
    pytest.importorskip("xllamacpp")
    from openai import OpenAI

    from benchmarks.api.llama_cpp_server import llama_cpp_server
    from benchmarks.api.real_server import sampled
    from swift_rm.api.endpoint import Endpoint

    folder = tmp_path_factory.mktemp("upstream")
    with pytest.MonkeyPatch.context() as patch, llama_cpp_server(ROOT / f"swift_rm/assets/{NAME}", key=KEY) as address:
        patch.setenv("OPENAI_API_KEY", KEY)
        train = sampled(Endpoint(NAME, address, extra_body=PLAIN), "reward", 200, 8, folder)
        fit(None, None, train, SwiftConfig.of_top_logprobs(TOP, base_model=NAME), loss="dpo").save_pretrained(folder / "rm")
        settings = Settings(model=NAME, upstream=address, reward_model=str(folder / "rm"))
        backend = UpstreamBackend(settings)
        backend.start()
        with serving(backend, settings) as gateway:
            here = OpenAI(api_key="a-client's-own", base_url=f"{gateway}/v1", max_retries=0)
            yield OpenAI(api_key=KEY, base_url=address), here  # llama.cpp's server may close a connection after a stream


def own(raw):
    """Return a reply's JSON without what is each reply's own."""
    return {key: value for key, value in json.loads(raw).items() if key not in OF_ITS_OWN}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("chat", [True, False])
def test_the_plain_name_answers_as_the_upstream_does(servers, chat, stream):
    said = []
    for client in servers:
        for question in HomeworkTask("test").questions(3, seed=7):
            if chat:
                made = client.chat.completions.with_raw_response.create(
                    model=NAME, messages=question.prompt, stream=stream, logprobs=True, top_logprobs=2, **FIXED
                )
            else:
                made = client.completions.with_raw_response.create(
                    model=NAME, prompt=question.prompt[0]["content"], stream=stream, logprobs=2, **FIXED
                )
            events = [event.removeprefix("data: ") for event in made.http_response.read().decode().split("\n\n") if event]
            assert not stream or events.pop() == "[DONE]"
            said.append((made.headers["content-type"], [own(event) for event in events]))
    assert said[:3] == said[3:] and (len(said[0][1]) > 1) == stream


def test_errors_pass_through(servers):
    from openai import BadRequestError

    told = []
    for client in servers:
        with pytest.raises(BadRequestError) as error:
            client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": "1+1"}], n=9)
        told.append(error.value.response.content)
    assert told[0] == told[1]


def test_the_best_of_16_is_right_more_often_than_the_plain_name(servers):
    task = HomeworkTask("test")
    questions = list(task.questions(60, seed=11))

    def right(name):
        def ask(question):
            made = servers[1].chat.completions.create(model=name, messages=question.prompt, seed=5, extra_body=PLAIN)
            return made, task.grade(question, made.choices[0].message.content or "").label

        with ThreadPoolExecutor(4) as pool:
            replies, labels = zip(*pool.map(ask, questions), strict=True)
        return replies, sum(labels)

    _, plain = right(NAME)
    replies, best = right("swift-best-of-16")
    assert best - plain >= 6, (plain, best)
    for made in replies:
        told = made.model_extra["swift"]
        assert (told["n"], told["drawn"], told["ended"]) == (16, 16, "all") and 0 < told["probability"] < 1
        assert made.usage.completion_tokens > 16 and made.usage.prompt_tokens > 1


def test_text_completions_are_ranked_and_streamed_too(servers):
    task = HomeworkTask("test")
    question = next(iter(task.questions(1, seed=3))).prompt[0]["content"]
    asked = {"model": "swift-vote-16", "prompt": question, "max_tokens": 30, "extra_body": PLAIN}
    made = servers[1].completions.create(n=3, **asked)
    assert len(made.choices) == 3 and made.choices[1].model_extra["reward"] >= made.choices[2].model_extra["reward"]
    chunks = list(servers[1].completions.create(stream=True, stream_options={"include_usage": True}, **asked))
    assert chunks[-1].usage.completion_tokens > 16 and any(chunk.choices and chunk.choices[0].text for chunk in chunks)
