"""Servers, networks and settings that mean no good."""

import gzip
import json
import threading
import time
import warnings

import pytest

from swift_rm.api.endpoint import Endpoint
from swift_rm.api.failures import ApiFailure, FatalError, RequestRefused
from swift_rm.api.keys import ApiKey
from swift_rm.api.reply import read_reply
from swift_rm.api.request_scheduler import RequestPool
from swift_rm.api.sampling import sample_api
from swift_rm.files.jsonl_appender import LineAppender
from tests.api.api_records import keys
from tests.api.api_server import KEY, MODEL, answer, choice, choices, completion, fake_api, leaks, raw, send, status
from tests.api.best_of_n_runs import PROMPTS, best, fails_on, work

ASKED = [{"role": "user", "content": "1 + 1"}]


def endpoint(api, model=MODEL, **options):
    return Endpoint(model, api.url, **{"retries": 0, "timeout_s": 5.0, "longest_wait_s": 0.01, **options})


def ask(one, text="1 + 1"):
    return one.ask([{"role": "user", "content": text}], {}, lambda body: read_reply(body, 1, 0))[0].text


def test_a_server_that_answers_with_another_model_is_refused_by_name(api):
    api.models = [{"id": MODEL, "aliases": ["small"]}, 7, {"id": None}]
    with pytest.raises(FatalError, match="has no model 'wrong': it answers with 'tiny'; name the one it has") as error:
        ask(endpoint(api, "wrong"))
    assert not leaks(error.value)
    assert ask(endpoint(api, "small"))  # which it lists
    with pytest.raises(FatalError, match="has no model 'ti'"):  # as gpt-4o-mini is not gpt-4o
        ask(endpoint(api, "ti"))
    api.models = []
    for name in ("tiny-2024-08-06", "tiny:7b", "tiny@2"):
        api.next.append(raw(json.dumps({**completion([choice(0, ["4"])]), "model": name})))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert ask(endpoint(api)) == "4"  # a date or version is the same model's, and nothing is said
    api.models = None
    one = endpoint(api, "deployment")
    with pytest.warns(UserWarning, match="answers as 'tiny' for 'deployment', and lists no models") as told:
        assert ask(one) and ask(one)
    assert len(told) == 1


def test_a_redirect_is_not_followed(api):
    with fake_api() as other:
        for code in (301, 302, 307, 308):
            words = {"location": f"{other.url}/chat/completions?key={KEY}\x7f"}
            api.usual = lambda handler, request, code=code, words=words: send(handler, code, b"", words)
            with pytest.raises(FatalError, match=rf"redirects to 'http://127.*' \(HTTP status {code}\)") as error:
                ask(endpoint(api))
            assert not leaks(error.value)
        assert not other.requests and len(api.requests) == 4


def endless(code):
    def server(handler, request):
        send(handler, code, b"{", length=10**12)
        while True:
            handler.wfile.write(b" " * 2**16)

    return server


def bomb(handler, request):
    send(handler, 200, gzip.compress(b" " * 2**23), {"content-encoding": "gzip"})


@pytest.mark.parametrize("server", [endless(200), endless(400), endless(500), bomb])
def test_a_reply_without_end_is_not_read_to_its_end(api, monkeypatch, server):
    monkeypatch.setattr("swift_rm.api.client.LARGEST_REPLY", 2**21)
    api.usual = server
    with pytest.raises(RequestRefused, match="sends a reply too long to be read"):
        ask(endpoint(api))
    api.usual = raw(" " * 2**20 + json.dumps(completion([choice(0, ["4"])])))
    assert ask(endpoint(api)) == "4"


def test_a_late_reply_is_not_read_on_in_the_background(api):
    start, gone = time.monotonic(), []

    def drips(handler, request):
        try:
            send(handler, 200, b"{", length=10**6)
            while time.monotonic() - start < 3:
                handler.wfile.write(b" " * 1000)
                time.sleep(0.02)
        except (BrokenPipeError, ConnectionResetError):
            gone.append(time.monotonic() - start)

    api.usual = drips
    one = endpoint(api, timeout_s=0.3)
    with RequestPool(1, lambda text: ask(one, text)) as pool:  # no alarm ends a call in another thread
        pool.put("1 + 1")
        _, outcome = pool.get()
    assert isinstance(outcome.error, ApiFailure) and "no reply within 0.3 s" in str(outcome.error)
    while time.monotonic() - start < 1.5 and not gone:
        time.sleep(0.01)
    assert gone and one.usage.requests == 1


def test_an_error_of_status_200_says_why(api):
    api.usual = raw(json.dumps({"error": {"message": "no credit left\x1b[2J", "code": 402}}))
    with pytest.raises(ApiFailure, match=r"a reply with an error: 'no credit left \[2J'"):
        ask(endpoint(api))
    api.usual = raw(json.dumps({"error": {"message": f"bad {KEY}"}}))
    with pytest.raises(ApiFailure, match=r"a reply with an error$"):
        ask(endpoint(api))


def test_all_requests_wait_for_as_long_as_one_is_told(api):
    api.next.append(status(429, "slow down", retry_after=0.4))
    one = endpoint(api, retries=1)
    threads = [threading.Thread(target=ask, args=(one, f"1 + {i}")) for i in range(5)]
    threads[0].start()
    time.sleep(0.15)
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(api.times) == 6 and min(api.times[1:]) - api.times[0] >= 0.39


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"timeout_s": 1e300}, "at most 1e.06"),
        ({"concurrency": 10**8}, "at most 1000, got 5.0, 0 and 100000000"),
        ({"extra_body": {"a": float("nan")}}, "extra_body cannot be written as JSON"),
        ({"extra_body": {"a": {1}}}, "extra_body cannot be written as JSON"),
        ({"model": f"m-{KEY}"}, "the model's name holds the key of OPENAI_API_KEY"),
        ({"key_env": KEY}, "environment variable that is to hold the key is not set"),
        ({"key_env": "gsk_Zq7vXw2PnT94Lm0bRk8sYc31"}, "environment variable that is to hold the key is not set"),
    ],
)
def test_settings_that_would_go_wrong_later(api, options, said):
    with pytest.raises(ValueError, match=said) as error:
        endpoint(api, **options)
    assert not leaks(error.value) and "gsk" not in str(error.value)


@pytest.mark.parametrize(
    "url", ["ftp://a/v1", "localhost:8000/v1", "http://a:99999/v1", "http://a:x/v1", "http://a:0/", "//a/v1"]
)
def test_addresses_that_are_none(api, url):
    with pytest.raises(ValueError, match="is no address with a host, of http or https"):
        Endpoint(MODEL, url)


def test_no_address_shows_the_key(api):
    with pytest.raises(ValueError, match="address holds the key of OPENAI_API_KEY") as error:
        Endpoint(MODEL, f"http://127.0.0.1/{KEY}/v1")
    for url in (api.url.replace("//", f"//user:{KEY}@"), f"{api.url}?key={KEY}"):
        one = Endpoint(MODEL, url, retries=0)
        api.usual = status(500)
        with pytest.raises((ApiFailure, ValueError)) as error:
            ask(one)
        assert not leaks(error.value, one.where)
    assert ApiKey("OPENAI_API_KEY").value == KEY


@pytest.mark.parametrize(
    "options",
    [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 7.0}, {"top_p": 0.0}, {"max_tokens": 0}, {"max_tokens": -4}],
)
def test_values_that_no_sampler_has_are_refused_before_anything_is_asked(api, tmp_path, options):
    with pytest.raises(ValueError, match="temperature must be at least 0, top_p above 0 and at most 1"):
        list(sample_api(endpoint(api), ["1 + 1"], 2, tmp_path / "r.jsonl", **options))
    assert not api.requests and not (tmp_path / "r.jsonl").exists()


def test_a_ctrl_c_just_after_a_line_was_written_does_not_write_it_again(api, tmp_path, monkeypatch):
    plain = LineAppender.append

    def interrupted(self, lines):
        plain(self, lines)
        raise KeyboardInterrupt

    api.usual = answer()
    monkeypatch.setattr(LineAppender, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(sample_api(endpoint(api), ["1 + 1"], 2, tmp_path / "r.jsonl", top_logprobs=3))
    assert len(keys(tmp_path / "r.jsonl")) == len(set(keys(tmp_path / "r.jsonl"))) == 2


def test_a_million_choices_are_no_more_than_were_asked_for(api):
    one = choice(0, ["4"], top=[-0.0001, -9.9])
    api.usual = choices(*[one] * 10_000)
    made = list(sample_api(endpoint(api), ["1 + 1"], 3, top_logprobs=2))
    assert [rollout.extra["sample"] for rollout in made[0]] == [0, 1, 2]


def test_a_question_for_which_several_choices_are_refused_is_asked_one_by_one(api):
    def one_of_the_last(handler, request):
        several = request.get("n", 1) > 1 and request["messages"][0]["content"] == "1 + 3"
        (status(400, "n must be 1") if several else answer())(handler, request)

    api.usual = one_of_the_last
    assert [len(result.candidates) for result in best(api, concurrency=1)(PROMPTS)] == [4, 4, 4]
    assert [request.get("n", 1) for request in work(api)] == [4, 4, 4, 1, 1, 1, 1]


@pytest.mark.parametrize("bad", [0, 2])
def test_a_question_that_is_refused_ends_no_others_wherever_it_is(api, bad):
    prompts = ["1 + 1", "1 + 2 + 3", "1 + 4"]
    api.usual = fails_on(prompts[bad], status(400, "too long"))
    with pytest.raises(ApiFailure, match=r"1 of 3 questions have no candidate: .* HTTP status 400: 'too long'") as failure:
        best(api)(prompts)
    assert [result is None for result in failure.value.results] == [place == bad for place in range(3)]


def test_names_decide_the_seeds(api):
    ask = best(api)
    first, second = ask(["1 + 1"] * 2, names=["a", "b"])
    assert ask(["1 + 1"], names=["b"]) == [second] and first.candidates != second.candidates
