from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from swift_rm.api.keys import without_secrets
from swift_rm.hipo.cold_start.endpoint_explainer import EndpointExplainer
from swift_rm.hipo.cold_start.judge_text import Facts, RuleExplainer

FACTS = Facts("What is 2+2?", "on", 0.875, 0.25, 8, 8)
TOLD = "thinking first was right in 7 of 8 tries, answering at once in 2 of 8 tries"


def test_the_rule_states_the_pass_rates():
    assert RuleExplainer()(FACTS) == TOLD
    assert RuleExplainer()(Facts("q", "on", 0.7153, None, 8)) == "thinking first was right in about 72 % of 8 tries"
    assert RuleExplainer()(Facts("q", "off", None, 1.0, 0, 4)) == "answering at once was right in 4 of 4 tries"


@pytest.mark.parametrize(("on", "off", "said"), [(1.0, 0.0, "90"), (0.875, 0.25, "82"), (0.3, 0.7, "37"), (0.95, None, "9")])
def test_the_terse_rule_writes_tenths(on, off, said):
    assert RuleExplainer("terse")(Facts("q", "on", on, off, 10, 10)) == said


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="'words' or 'terse', got 'verse'"):
        RuleExplainer("verse")


@pytest.fixture
def endpoint(monkeypatch):
    """A server on this machine that answers chat completions as ``state["answer"](handler)`` says."""
    state = {"asked": [], "headers": []}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            state["asked"].append(json.loads(body))
            state["headers"].append({name.lower(): value for name, value in self.headers.items()})
            state["answer"](self)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    state["url"] = f"http://127.0.0.1:{server.server_port}/v1"
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def reply(text, status=200, raw=None, wait=0.0):
    def answer(handler):
        time.sleep(wait)
        whole = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        body = (json.dumps({**whole, "choices": [choice]}) if raw is None else raw).encode()
        try:
            handler.send_response(status)
            handler.send_header("Content-Type", "application/json")
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body)
        except BrokenPipeError:
            pass

    return answer


def explainer(endpoint, **options):
    return EndpointExplainer("m", endpoint["url"], **{"retries": 0, "timeout_s": 5.0, **options})


def test_an_endpoint_is_asked_with_the_facts(endpoint):
    endpoint["answer"] = reply(" A sum of\n two numbers\u200b needs no\tthinking. ")
    ask = explainer(endpoint)
    assert ask(FACTS) == "A sum of two numbers needs no thinking."
    asked = endpoint["asked"][0]
    assert asked["model"] == "m" and not ask.fallbacks
    content = asked["messages"][0]["content"]
    assert TOLD in content and "What is 2+2?" in content and "think-on" in content
    assert endpoint["headers"][0]["authorization"] == "Bearer sk-secret"
    assert "sk-secret" not in repr(ask) + repr(vars(ask))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (reply("", status=500), "HTTP status 500"),
        (reply("use <think_on> here"), "a reply with a tag"),
        (reply("a \u200b<ju\u200bdge>"), "a reply with a tag"),  # invisible characters do not hide it
        (reply(" \n\u200b"), "an empty reply"),
        (reply(None), "a malformed reply"),
        (reply("", raw="{}"), "a malformed reply"),
        (reply("", raw='{"choices": []}'), "a malformed reply"),
        (reply("", raw='{"choices": [{"message": "x"}]}'), "a malformed reply"),
        (reply("", raw='{"choices": "x"}'), "a malformed reply"),
        (reply("", raw="[1]"), "a malformed reply"),
        (reply("", raw="{not json"), "no reply: JSONDecodeError"),
    ],
)
def test_what_cannot_be_used_is_replaced_by_the_rule_and_counted(endpoint, answer, reason):
    endpoint["answer"] = answer
    ask = explainer(endpoint)
    assert ask(FACTS) == TOLD and dict(ask.fallbacks) == {reason: 1}


def test_a_slow_endpoint_is_not_waited_for(endpoint):
    endpoint["answer"] = reply("late", wait=0.5)
    ask = explainer(endpoint, timeout_s=0.1, rule=RuleExplainer("terse"))
    assert ask(FACTS) == "82" and dict(ask.fallbacks) == {"no reply in time": 1}


def test_after_failures_in_a_row_nothing_more_is_asked(endpoint):
    endpoint["answer"] = reply("", status=500)
    ask = explainer(endpoint, give_up=2)
    for _ in range(4):
        ask(FACTS)
    assert len(endpoint["asked"]) == 2
    assert dict(ask.fallbacks) == {"HTTP status 500": 2, "not asked after failures": 2}


def test_a_long_reply_is_cut_between_words(endpoint):
    endpoint["answer"] = reply("easy " * 1000)
    assert explainer(endpoint, longest=12)(FACTS) == "easy easy"
    endpoint["answer"] = reply("e" * 1000)
    assert explainer(endpoint, longest=12)(FACTS) == "e" * 12


def test_a_refused_key_ends_the_work_without_being_shown(endpoint):
    endpoint["answer"] = reply("", status=401, raw='{"error": {"message": "wrong key: sk-secret"}}')
    with pytest.raises(ValueError, match=r"127.0.0.1.*'m': HTTP status 401; is OPENAI_API_KEY set") as refusal:
        explainer(endpoint)(FACTS)
    assert "sk-secret" not in str(refusal.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://host:8000/v1", "https://host:8000/v1"),
        ("https://me:sk-1@host/v1/?key=sk-2#sk-3", "https://host/v1/"),
        ("http://a@b@host/v1@2", "http://host/v1@2"),
    ],
)
def test_an_address_is_shown_without_what_may_be_a_key(url, shown):
    assert without_secrets(url) == shown


def test_settings_that_make_no_sense(endpoint):
    for url in ("http://", "host/v1", "http://[::1/v1"):
        with pytest.raises(ValueError, match="is no address with a host"):
            explainer({"url": url})
    with pytest.raises(ValueError, match="must be positive"):
        explainer(endpoint, timeout_s=0)
