"""A chat completions server on loopback that does what a test says: right answers, and everything that can go wrong."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections import deque
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "sk-Zq7vXw2PnT94-Lm0bRk8sYc31"
MODEL = "tiny"


class FakeApi:
    """What it was asked (``requests``, ``headers``), and what it says: first what is in ``next``, then ``usual``.

    A reply is a function of the handler and the request. ``busy_s`` is how long a usual one takes, ``most`` how many requests
    were under way at once.
    """

    def __init__(self):
        self.next, self.usual, self.busy_s = deque(), answer(), 0.0
        self.requests, self.headers, self.times = [], [], []
        self.now = self.most = 0
        self.lock = threading.Lock()
        self.url, self.models = "", None  # what it lists

    def take(self, handler):
        request = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self.lock:
            self.requests.append(request)
            self.headers.append({name.lower(): value for name, value in handler.headers.items()})
            self.times.append(time.monotonic())
            self.now += 1
            self.most = max(self.most, self.now)
            reply = self.next.popleft() if self.next else self.usual
        try:
            time.sleep(self.busy_s)
            reply(handler, request)
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            with self.lock:
                self.now -= 1


@contextmanager
def fake_api():
    api = FakeApi()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            api.take(self)

        def do_GET(self):
            send(self, 404 if api.models is None else 200, json.dumps({"data": api.models}).encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    api.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield api
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def send(handler, status, body, headers=None, length=None):
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    for name, value in (headers or {}).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


def status(code, words="it broke", **headers):
    """An HTTP error; ``retry_after_ms=20`` is a header."""
    body = json.dumps({"error": {"message": words}}).encode()
    named = {name.replace("_", "-"): str(value) for name, value in headers.items()}
    return lambda handler, request: send(handler, code, body, named)


def raw(text):
    """A reply of status 200 with any body."""
    return lambda handler, request: send(handler, 200, text.encode())


def cut(handler, request):
    """Half a body, then the end of the connection."""
    body = json.dumps(completion([choice(0, ["half"])])).encode()
    send(handler, 200, body[: len(body) // 2], length=len(body))
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)


def slow(seconds):
    """A reply that comes late."""

    def late(handler, request):
        time.sleep(seconds)
        answer()(handler, request)

    return late


def dripping(handler, request):
    """A byte now and then, for ever: no single wait is long."""
    send(handler, 200, b"{", length=10**6)
    for _ in range(100):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def choices(*made):
    """A reply with just these choices."""
    return raw(json.dumps(completion(list(made))))


def completion(made, usage=True):
    tokens = sum(len(((one.get("logprobs") or {}).get("content")) or ()) for one in made)
    told = {"usage": {"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": 7 + tokens}} if usage else {}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": MODEL, "choices": made, **told}


def choice(index, pieces, logprobs=None, top=(), text=None, reason="stop", **changed):
    """One choice; each piece is a token's text, ``top`` the alternatives' log-probabilities of every token."""
    logprobs = [-0.5] * len(pieces) if logprobs is None else logprobs
    entries = [
        {
            "token": piece, "bytes": list(piece.encode()), "logprob": value,
            "top_logprobs": [{"token": f"t{i}", "bytes": None, "logprob": one} for i, one in enumerate(top)],
        }
        for piece, value in zip(pieces, logprobs, strict=True)
    ]  # fmt: skip
    message = {"role": "assistant", "content": "".join(pieces) if text is None else text}
    return {"index": index, "message": message, "logprobs": {"content": entries}, "finish_reason": reason, **changed}


def drawn(request, index):
    """The choice that this server draws: a function of the messages, the seed and the index."""
    draw = random.Random(repr((request["messages"], request.get("seed"), index)))
    pieces = [*(f"{draw.randrange(10)} + " for _ in range(draw.randrange(1, 4))), "= ", str(draw.randrange(3))]
    pieces = pieces[: request.get("max_tokens") or len(pieces)]
    values = [round(-draw.random() * 3, 4) for _ in pieces]
    top = [round(-0.7 * (i + 1), 4) for i in range(request.get("top_logprobs") or 0)]
    return choice(index, pieces, values, top)


def answer(most=128, **changed):
    """Answer with up to ``most`` choices; ``changed`` keys of each choice."""

    def told(handler, request):
        made = [{**drawn(request, i), **changed} for i in range(min(most, request.get("n") or 1))]
        send(handler, 200, json.dumps(completion(made)).encode())

    return told


def leaks(*texts):
    """Tell whether any six characters in a row of the key are in a text."""
    whole = "\n".join(map(str, texts))
    return [KEY[at : at + 6] for at in range(len(KEY) - 5) if KEY[at : at + 6] in whole]
