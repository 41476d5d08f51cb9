"""A gateway on loopback in this process, for tests that speak HTTP with it."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import time
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from http.client import HTTPResponse

import uvicorn

from swift_rm.gateway.app.application import create_app
from swift_rm.gateway.request.settings import Settings

CHAT = "/v1/chat/completions"


def _server(backend, settings, token, metrics=None):
    settings = settings or Settings(model="m", reward_model="r")
    app = create_app(backend, settings, token=token, metrics=metrics)
    return uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, lifespan="off"))


def _port(server):
    return server.servers[0].sockets[0].getsockname()[1]


@contextmanager
def serving(backend, settings=None, token=None):
    """Serve a backend in a thread; yield the address without /v1."""
    server = _server(backend, settings, token)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{_port(server)}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        assert not thread.is_alive(), "the server does not end"


@dataclass
class Reply:
    status: int
    headers: dict
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def message(self):
        """The sentence of an error, which must be in OpenAI's format."""
        assert set(self.json) == {"error"} and set(self.json["error"]) == {"message", "type", "param", "code"}
        return self.json["error"]["message"]

    @property
    def events(self):
        """The data of a stream's events, as JSON or "[DONE]"."""
        data = [line[6:] for line in self.body.decode().split("\n\n") if line.startswith("data: ")]
        return [one if one == "[DONE]" else json.loads(one) for one in data]


class Running:
    """A server in the test's own event loop, and raw requests to it."""

    def __init__(self, server):
        self.server, self.port = server, _port(server)
        self.app = server.config.app

    async def open(self, method, path, body=b"", host="localhost", **headers):
        """Send a request and return its connection; headers with _ for -, None leaves one out."""
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        usual = {"host": host, "content-type": "application/json", "content-length": len(body), "connection": "close"}
        told = {**usual, **{name.replace("_", "-"): value for name, value in headers.items()}}
        lines = [f"{name}: {value}\r\n".encode() for name, value in told.items() if value is not None]
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(f"{method} {path} HTTP/1.1\r\n".encode() + b"".join(lines) + b"\r\n" + body)
        return reader, writer

    async def ask(self, method, path, body=b"", **headers):
        reader, writer = await self.open(method, path, body, **headers)
        return await self.reply(reader, writer)

    async def get(self, path, **headers):
        return await self.ask("GET", path, content_type=None, content_length=None, **headers)

    async def chat(self, model="swift-best-of-2", path=CHAT, **fields):
        asked = {"model": model, "messages": [{"role": "user", "content": "27 + 15"}]}
        return await self.ask("POST", path, {**asked, **fields})

    async def reply(self, reader, writer):
        data = await asyncio.wait_for(reader.read(), 20)
        writer.close()

        class Socket:
            def makefile(self, mode):
                return io.BytesIO(data)

        response = HTTPResponse(Socket())
        response.begin()
        return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())


async def until(condition):
    """Wait until a condition holds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def running(backend, settings=None, token=None, metrics=None):
    """Serve a backend in this event loop; when it has ended no task may be left."""
    before = asyncio.all_tasks()
    server = _server(backend, settings, token, metrics)
    task = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    try:
        yield Running(server)
        await until(lambda: asyncio.all_tasks() <= {*before, task})
    finally:
        server.should_exit = True
        await task
