"""The gateway's process: what it says, when it answers, and how it ends."""

import asyncio
import json
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress

import pytest

from swift_rm.cli.main import main
from swift_rm.gateway.http.listening import listen, url
from swift_rm.gateway.http.metrics import Metrics
from swift_rm.gateway.process.server import ServerProcess
from swift_rm.gateway.request.settings import Settings
from tests.gateway.served_process import get, started
from tests.gateway.stub import Stub

NEEDED = ["serve", "--model", "m", "--reward-model", "r"]
ASKED = {"model": "swift-best-of-4", "messages": [{"role": "user", "content": "a secret question"}]}


@contextmanager
def under_way(server):
    """Ask a question that is answered when the file `answer` is there; give a list that gets the reply."""
    address, replies = server.event("ready")["address"], []

    def ask():
        with suppress(ConnectionError):
            replies.append(get(f"{address}/chat/completions", ASKED))

    asking = threading.Thread(target=ask)
    asking.start()
    server.wait_for("asked")
    yield replies
    asking.join(timeout=20)


def test_the_life_of_a_server(tmp_path):
    heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    heard.bind(str(tmp_path / "notify"))
    heard.settimeout(10)
    with heard, started(tmp_path, NOTIFY_SOCKET=str(tmp_path / "notify")) as server:
        v1 = server.event("loading")["address"]
        root = v1.removesuffix("/v1")
        status, headers, text = get(f"{root}/health")
        assert (status, json.loads(text)["status"], headers["retry-after"]) == (503, "starting", "5")
        for path, data in (("models", None), ("chat/completions", ASKED), ("completions", {"model": "stub", "prompt": "x"})):
            status, headers, text = get(f"{v1}/{path}", data)
            assert (status, headers["retry-after"], json.loads(text)["error"]["code"]) == (503, "5", "starting")
        status, headers, text = get(root)
        assert (status, headers["refresh"], "being loaded" in text) == (503, "2", True)
        (tmp_path / "go").touch()
        ready = server.event("ready")
        assert ready["address"] == v1
        assert ready["models"][:2] == ["stub", "swift-best-of-4"]
        assert "shrunk" in ready["rules"]
        assert heard.recv(100) == b"READY=1"
        assert get(f"{root}/health")[0] == 200
        assert [one["id"] for one in json.loads(get(f"{v1}/models")[2])["data"]] == ready["models"]

        server.process.send_signal(signal.SIGHUP)
        assert "No such file" in server.event("reload failed")["reason"]
        (tmp_path / "reward_model").write_text("a new one")
        server.process.send_signal(signal.SIGHUP)
        assert server.event("reloaded")["reward_model"] == "a new one"
        for _ in range(2):
            name, moment = heard.recv(100).decode().split("\n")
            assert name == "RELOADING=1"
            assert abs(int(moment.removeprefix("MONOTONIC_USEC=")) - time.monotonic_ns() // 1000) < 60e6
            assert heard.recv(100) == b"READY=1"
        counted = get(f"{root}/metrics")[2]
        assert 'swift_rm_reward_model_reloads_total{ok="true"} 1.0' in counted
        assert 'swift_rm_reward_model_reloads_total{ok="false"} 1.0' in counted

        with under_way(server) as replies:
            server.process.send_signal(signal.SIGTERM)
            assert heard.recv(100) == b"STOPPING=1"
            time.sleep(0.4)
            with pytest.raises(urllib.error.URLError):
                get(f"{root}/health")
            assert not replies
            (tmp_path / "answer").touch()
        status, _, text = replies[0]
        assert (status, json.loads(text)["choices"][0]["message"]["content"]) == (200, "42")
        code, _ = server.ended()
        assert code == 0, server.said
        assert (tmp_path / "closed").exists()
        assert "secret" not in "".join(server.said)


def test_what_has_not_ended_after_the_drain_is_told_so(tmp_path):
    (tmp_path / "go").touch()
    with started(tmp_path, "--drain-s", "0.5", NOTIFY_SOCKET="/nobody/there") as server:
        with under_way(server) as replies:
            server.process.send_signal(signal.SIGINT)
        status, headers, text = replies[0]
        assert (status, headers["retry-after"], json.loads(text)["error"]["code"]) == (503, "5", "stopping")
        assert server.ended()[0] == 0


def test_a_second_signal_ends_at_once(tmp_path):
    (tmp_path / "go").touch()
    with started(tmp_path) as server:
        with under_way(server) as replies:
            server.process.send_signal(signal.SIGTERM)
            server.event("stopping")
            server.process.send_signal(signal.SIGTERM)
            assert server.ended(within=5)[0] == 1
        assert not replies


def test_a_signal_does_not_wait_for_loading(tmp_path):
    with started(tmp_path) as server:
        server.event("loading")
        server.process.send_signal(signal.SIGTERM)
        assert server.ended(within=10)[0] == 0


def test_a_model_that_cannot_be_loaded_ends_the_server(tmp_path):
    (tmp_path / "go").write_text("ValueError it is for another base model")
    with started(tmp_path) as server:
        assert server.ended() == (2, "swift-rm: it is for another base model\n")


@pytest.mark.parametrize("failure", [OSError("nobody there"), ZeroDivisionError("a fault")])
def test_whatever_loading_raises_is_raised_and_the_port_is_free_again(failure):
    class Failing(Stub):
        def start(self):
            raise failure

    with listen("127.0.0.1", 0) as listening:
        process = ServerProcess(Failing(), Settings(model="m", reward_model="r"), Metrics(), listening, None)
        port = listening.getsockname()[1]
        with pytest.raises(type(failure), match=str(failure)):
            asyncio.run(process.run())
    assert not process.busy
    with listen("127.0.0.1", port):
        pass


def test_a_port_in_use_is_one_sentence(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main([*NEEDED, "--port", str(port)]) == 1
    assert capsys.readouterr().err == f"swift-rm: cannot listen on 127.0.0.1 port {port}: address already in use\n"


def test_a_server_for_others_without_a_token_is_misuse(capsys, monkeypatch):
    monkeypatch.delenv("SWIFT_RM_TOKEN", raising=False)
    assert main([*NEEDED, "--host", "0.0.0.0"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("swift-rm: whoever can reach 0.0.0.0 could use this server: set a token")
    assert said.count("\n") == 1


def test_a_variable_that_is_named_must_hold_the_token(capsys, monkeypatch):
    monkeypatch.delenv("MY_TOKEN", raising=False)
    assert main([*NEEDED, "--token-env", "MY_TOKEN"]) == 2
    said = capsys.readouterr().err
    assert said == "swift-rm: there is no token in the environment variable 'MY_TOKEN', which token-env names\n"


def test_addresses():
    with listen("localhost", 0) as one:
        assert one.family == socket.AF_INET
    assert (url("localhost", 80), url("::1", 80)) == ("http://localhost:80", "http://[::1]:80")
    with pytest.raises(OSError, match=r"cannot listen on 203\.0\.113\.9 port 0: "):
        listen("203.0.113.9", 0)
    with pytest.raises(OSError, match=r"cannot listen on no\.such\.host\.invalid port 0: "):
        listen("no.such.host.invalid", 0)
    with pytest.raises(OSError, match="cannot listen on"):
        listen("x" * 300, 0)
