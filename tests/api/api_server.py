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
        self.requests, self.headers, self.times, self.paths, self.bodies = [], [], [], [], []
        self.now = self.most = 0
        self.lock = threading.Lock()
        self.url, self.models, self.listed, self.looks = "", None, 200, 0  # what it lists, with which status, how often

    def take(self, handler):
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        request = json.loads(body)
        with self.lock:
            self.paths.append(handler.path)
            self.bodies.append(body)
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
            api.looks += 1
            send(self, 404 if api.models is None else api.listed, json.dumps({"data": api.models}).encode())

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


def send(handler, status, body, headers=None, length=None, kind="application/json"):
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
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


def raw(text, kind="application/json"):
    """A reply of status 200 with any body."""
    return lambda handler, request: send(handler, 200, text.encode(), kind=kind)


def cut(handler, request):
    """Half a body, then the end of the connection."""
    body = json.dumps(completion([choice(0, ["half"])])).encode()
    send(handler, 200, body[: len(body) // 2], length=len(body))
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)


def kept(handler, request):
    """A reply after which the connection stays open for another request."""
    handler.protocol_version = "HTTP/1.1"
    answer()(handler, request)
    handler.close_connection = False


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


def streamed(*pieces, cut_off=False, gap_s=0.0):
    """A stream of events in these pieces of text, chunked; ``cut_off`` ends the connection where more is to come."""

    def told(handler, request):
        handler.protocol_version, handler.close_connection = "HTTP/1.1", True
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream; charset=utf-8")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for piece in pieces:
            data = piece.encode()
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            handler.wfile.flush()
            time.sleep(gap_s)
        if cut_off:
            handler.connection.shutdown(socket.SHUT_RDWR)
        else:
            handler.wfile.write(b"0\r\n\r\n")

    return told


class Left:
    """A reply that never comes, or after its ``first`` events never goes on; ``event`` is set when the client is gone."""

    def __init__(self, first=None):
        self.begun, self.event, self.first = threading.Event(), threading.Event(), first

    def __call__(self, handler, request):
        if self.first is not None:
            handler.send_response(200)
            handler.send_header("Content-Type", "text/event-stream")
            handler.end_headers()
            handler.wfile.write(self.first.encode())
            handler.wfile.flush()
        self.begun.set()
        handler.connection.settimeout(10)
        if handler.connection.recv(1) == b"":
            self.event.set()


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


def text_choice(made, legacy=True):
    """The same choice as of a text completion: with OpenAI's legacy lists, or, as llama.cpp has it, a chat's."""
    entries = made["logprobs"]["content"]
    lists = {
        "tokens": [one["token"] for one in entries], "token_logprobs": [one["logprob"] for one in entries],
        "top_logprobs": [{top["token"]: top["logprob"] for top in one["top_logprobs"]} for one in entries],
        "text_offset": [0] * len(entries),
    }  # fmt: skip
    rest = {key: value for key, value in made.items() if key != "message"}
    return {**rest, "text": made["message"]["content"], "logprobs": lists if legacy else made["logprobs"]}


def drawn(request, index):
    """The choice that this server draws: a function of the prompt, the seed and the index."""
    draw = random.Random(repr((request.get("messages", request.get("prompt")), request.get("seed"), index)))
    pieces = [*(f"{draw.randrange(10)} + " for _ in range(draw.randrange(1, 4))), "= ", str(draw.randrange(3))]
    pieces = pieces[: request.get("max_tokens") or len(pieces)]
    values = [round(-draw.random() * 3, 4) for _ in pieces]
    wanted = request.get("top_logprobs") if "messages" in request else request.get("logprobs")
    top = [round(-0.7 * (i + 1), 4) for i in range(wanted or 0)]
    return choice(index, pieces, values, top)


def answer(most=128, legacy=True, **changed):
    """Answer with up to ``most`` choices; ``changed`` keys of each choice."""

    def told(handler, request):
        made = [{**drawn(request, i), **changed} for i in range(min(most, request.get("n") or 1))]
        if "messages" not in request:
            made = [text_choice(one, legacy) for one in made]
        send(handler, 200, json.dumps(completion(made)).encode())

    return told


def leaks(*texts):
    """Tell whether any six characters in a row of the key are in a text."""
    whole = "\n".join(map(str, texts))
    return [KEY[at : at + 6] for at in range(len(KEY) - 5) if KEY[at : at + 6] in whole]
