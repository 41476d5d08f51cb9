import logging
import subprocess
import sys
import time
import traceback

import pytest

from swift_rm.api.endpoint import Endpoint
from swift_rm.api.failures import ApiFailure, FatalError, RequestRefused
from swift_rm.api.keys import ApiKey
from swift_rm.api.reply import read_reply
from swift_rm.api.retry_delay import backoff, retry_after_s
from swift_rm.api.usage import Usage
from tests.api.api_server import KEY, MODEL, answer, choice, choices, completion, cut, dripping, leaks, raw, slow, status

ASKED = [{"role": "user", "content": "1 + 1"}]


def ask(api, **options):
    endpoint = Endpoint(MODEL, api.url, **{"retries": 2, "timeout_s": 5.0, "longest_wait_s": 0.01, **options})
    return endpoint, lambda: endpoint.ask(ASKED, {"logprobs": True}, lambda body: read_reply(body, 1, 0))


def one_sentence(error):
    said = str(error)
    whole = "".join(traceback.format_exception(error)) + repr(error.__cause__) + repr(error.__context__)
    assert "\n" not in said and not leaks(whole), whole
    return said


@pytest.mark.parametrize(
    "fault",
    [status(500), status(503), status(408), status(409), cut, raw("{not json"), raw(""), raw("[" * 100_000), raw("[1]"),
     raw('{"error": {"message": "overloaded"}}'), raw('{"choices": [{"message": null}]}')],
)  # fmt: skip
def test_what_may_pass_is_asked_again(api, fault):
    api.next.extend([fault, fault])
    endpoint, run = ask(api)
    assert run()[0].text
    assert len(api.requests) == 3 and api.requests[0] == api.requests[2]
    assert (endpoint.usage.requests, endpoint.usage.retries) == (3, 2)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (status(500, "oh no"), "failed after 3 tries: HTTP status 500: 'oh no'"),
        (cut, "failed after 3 tries: the connection failed or was cut"),
        (raw("{not json"), "failed after 3 tries: a reply that is not JSON"),
        (raw('{"choices": "x"}'), "failed after 3 tries: a reply without choices"),
    ],
)
def test_what_never_passes_is_one_sentence(api, fault, said, caplog):
    api.usual = fault
    with caplog.at_level(logging.DEBUG), pytest.raises(ApiFailure) as failure:
        ask(api)[1]()
    assert said in one_sentence(failure.value) and api.url in str(failure.value)
    assert len(api.requests) == 3 and not leaks(caplog.text)


def test_a_server_that_is_not_there_is_one_sentence(api):
    with pytest.raises(ApiFailure) as failure:
        Endpoint(MODEL, "http://127.0.0.1:9/v1", retries=1, longest_wait_s=0.01).ask(ASKED, {}, lambda body: body)
    assert "the connection failed or was cut (ConnectError)" in one_sentence(failure.value)


@pytest.mark.parametrize("late", [slow(1.0), dripping])
def test_a_slow_reply_is_not_waited_for(api, late):
    api.next.append(late)
    start = time.monotonic()
    assert ask(api, timeout_s=0.3)[1]()[0].text
    assert 0.3 < time.monotonic() - start < 1.0
    api.usual = late
    with pytest.raises(ApiFailure, match=r"failed after 2 tries: no reply within 0.1 s"):
        ask(api, timeout_s=0.1, retries=1)[1]()


@pytest.mark.parametrize(("headers", "least"), [({"retry_after_ms": 200}, 0.2), ({"retry_after": 0.3}, 0.3)])
def test_the_server_says_when_to_ask_again(api, headers, least):
    api.next.append(status(429, "slow down", **headers))
    assert ask(api)[1]()[0].text
    assert least <= api.times[1] - api.times[0] < least + 0.5


def test_a_server_that_wants_no_other_try_gets_none(api):
    api.next.append(status(429, "come back tomorrow", retry_after=80_000))
    with pytest.raises(ApiFailure, match=r"at the first try: HTTP status 429: 'come back tomorrow', which asks for .* 80000 s"):
        ask(api)[1]()
    api.next.append(status(429, "no money left", x_should_retry="false"))
    with pytest.raises(ApiFailure, match="'no money left', not to be tried again"):
        ask(api)[1]()
    assert len(api.requests) == 2


def test_waits_double_up_to_a_limit():
    assert all(0.375 * 2**i <= backoff(i, 8.0) <= 0.5 * 2**i for i in range(5))
    assert backoff(1000, 8.0) <= 8.0
    assert retry_after_s({"retry-after": "2.5"}) == 2.5 and retry_after_s({"retry-after-ms": "-3"}) == 0.0
    assert retry_after_s({}) is None and retry_after_s({"retry-after": "soon"}) is None
    assert 28 < retry_after_s({"retry-after": time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 30))}) <= 30


@pytest.mark.parametrize(
    ("code", "kind", "said"),
    [
        (401, FatalError, "refuses the key: HTTP status 401; set OPENAI_API_KEY to one that may use the model 'tiny'"),
        (403, FatalError, "refuses the key: HTTP status 403"),
        (404, FatalError, "has no model 'tiny' or no chat completions: HTTP status 404: 'no such model'; is the name right"),
        (400, RequestRefused, "does not accept the request, HTTP status 400: 'no such model'; change what it names"),
        (422, RequestRefused, "does not accept the request, HTTP status 422"),
    ],
)
def test_what_cannot_pass_is_asked_once(api, code, kind, said):
    api.usual = status(code, "no such model")
    with pytest.raises(kind) as refusal:
        ask(api)[1]()
    assert said in one_sentence(refusal.value) and isinstance(refusal.value, ValueError) and len(api.requests) == 1


@pytest.mark.parametrize(
    "words",
    [f"wrong key {KEY}", f"wrong key {KEY[:9]}...{KEY[-4:]}", f"Bearer\u200b{KEY[3:9].upper()}", " ".join(KEY),
     "\u200b".join(KEY)],
)  # fmt: skip
@pytest.mark.parametrize("code", [400, 401, 404, 429])
def test_no_part_of_the_key_is_shown(api, words, code, caplog):
    api.usual = status(code, words)
    with caplog.at_level(logging.DEBUG, "swift_rm"), pytest.raises((ValueError, ApiFailure)) as error:
        ask(api, retries=0)[1]()
    said = one_sentence(error.value)
    assert words not in said and f"HTTP status {code}" in said and not leaks(caplog.text)
    assert api.headers[0]["authorization"] == f"Bearer {KEY}"


def test_what_a_server_says_cannot_drive_the_terminal(api):
    api.usual = status(400, "\x1b[2Jno\r\n\u202e" + "x" * 500)
    with pytest.raises(RequestRefused) as refusal:
        ask(api)[1]()
    assert str(refusal.value).isprintable() and "[2Jno" in str(refusal.value) and len(str(refusal.value)) < 400


def test_an_endpoint_shows_no_key(api):
    endpoint, _ = ask(api)
    assert not leaks(repr(endpoint), repr(vars(endpoint)), repr(endpoint.key), str(endpoint.key))


def test_the_key_comes_from_the_variable_that_is_named(api, monkeypatch):
    monkeypatch.setenv("OTHER_KEY", " other ")
    ask(api, key_env="OTHER_KEY")[1]()
    monkeypatch.delenv("OPENAI_API_KEY")
    ask(api)[1]()
    assert [headers["authorization"] for headers in api.headers] == ["Bearer other", "Bearer none"]
    monkeypatch.setenv("OTHER_KEY", f"{KEY}\nx")
    with pytest.raises(ValueError, match="OTHER_KEY holds no key") as error:
        ApiKey("OTHER_KEY")
    assert not leaks(error.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"timeout_s": 0}, "timeout_s must be positive"),
        ({"retries": -1}, "got 5.0, -1 and 8"),
        ({"concurrency": 0}, "concurrency at least 1"),
        ({"extra_body": {"n": 3}}, "extra_body cannot set 'n'"),
        ({"extra_body": {"x": KEY}}, "extra_body holds the key of OPENAI_API_KEY"),
    ],
)
def test_settings_that_make_no_sense(api, options, said):
    with pytest.raises(ValueError, match=said) as error:
        ask(api, **options)
    assert not leaks(error.value)
    with pytest.raises(ValueError, match=r"'http://' is no address"):
        Endpoint(MODEL, f"http://?key={KEY}")


def test_what_else_a_request_says(api):
    ask(api, extra_body={"top_k": 40})[1]()
    assert api.requests == [{"model": MODEL, "messages": ASKED, "logprobs": True, "top_k": 40}]


def test_a_request_that_cannot_be_written_is_refused(api):
    with pytest.raises(RequestRefused, match="could not be written"):
        Endpoint(MODEL, api.url).ask([{"role": "user", "content": "\ud800"}], {}, lambda body: body)


def test_usage_adds_up(api):
    endpoint, run = ask(api)
    api.next.append(choices(choice(0, ["a", "b", "c"]), choice(1, ["d"])))
    api.next.append(answer())
    run(), run()
    assert (endpoint.usage.prompt_tokens, endpoint.usage.unreported) == (14, 0)
    usage = Usage()
    usage.count_reply(completion([choice(0, ["a", "b", "c"]), choice(1, ["d"])], usage=False))
    usage.count_reply({"usage": {"prompt_tokens": "7", "completion_tokens": -1}})
    usage.count_reply([1])
    usage.count_reply({"choices": [7, {"logprobs": []}], "usage": {"prompt_tokens": 5, "completion_tokens": 10**30}})
    assert usage.to_dict() == {
        "requests": 0, "retries": 0, "prompt_tokens": 5, "completion_tokens": 4, "unreported": 4
    }  # fmt: skip


def test_without_the_package_one_sentence_says_how_to_get_it(api, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r'pip install "swift-rm\[api\]"'):
        ask(api)


def test_the_client_is_imported_when_an_endpoint_is_opened():
    program = "import sys, swift_rm.api.best_of_n, swift_rm.api.sampling; "
    program += "print('openai' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr


def test_the_limit_has_the_name_that_the_server_knows(api, monkeypatch):
    """OpenAI's own refuses max_tokens for newer models; other servers may not know max_completion_tokens."""
    one = Endpoint(MODEL, api.url)
    one.ask(ASKED, {"max_tokens": 5}, lambda body: body)
    assert api.requests[-1]["max_tokens"] == 5 and "max_completion_tokens" not in api.requests[-1]
    one = Endpoint(MODEL, api.url, extra_body={"max_completion_tokens": 7})
    one.ask(ASKED, {"max_tokens": 5}, lambda body: body)
    assert api.requests[-1]["max_completion_tokens"] == 7 and "max_tokens" not in api.requests[-1]
    monkeypatch.setattr(Endpoint, "_reply", lambda self, request: request)
    asked = Endpoint(MODEL).ask(ASKED, {"max_tokens": 5}, lambda body: body)
    assert asked["max_completion_tokens"] == 5 and "max_tokens" not in asked
