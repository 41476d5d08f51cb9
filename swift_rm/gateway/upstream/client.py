"""The connection to an upstream: every request with the gateway's own key, a few at once, none without an end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx2

from swift_rm.api.client import LARGEST_ERROR, LARGEST_REPLY
from swift_rm.api.keys import ApiKey, check_address, host_of, is_loopback, without_secrets
from swift_rm.gateway.request.settings import Settings
from swift_rm.gateway.upstream.faults import UpstreamFault, too_late, transport_fault, unreadable_reply

CONNECT_S = 5.0
IDLE_S = 2.0  # a connection is kept open: less than servers keep theirs, so that none is used as it is closed there


@dataclass(frozen=True)
class Deadline:
    """Until when something may take, by the running loop's clock, and how long that was."""

    at: float
    seconds: float


@dataclass(frozen=True)
class UpstreamReply:
    """A whole reply; ``headers`` have lower-case names."""

    status: int
    headers: httpx2.Headers
    body: bytes


class UpstreamClient:
    """Ask the server at ``settings.upstream``; cancelling a call closes its connection, so that the server stops generating.

    Redirects are not followed: prompts would go to a host that nobody named. Proxies and certificates are those of the
    environment, as they are for the `openai` client, but for a server on this machine, which no proxy reaches. Raises
    ValueError for an address or key that cannot be.
    """

    def __init__(self, settings: Settings) -> None:
        self.key = ApiKey(settings.api_key_env)
        check_address(settings.upstream, self.key)
        self.where = without_secrets(settings.upstream).rstrip("/")
        self.timeout_s = settings.timeout_s
        address, self._query = settings.upstream.partition("?")[::2]
        self._base = address.rstrip("/")
        try:
            httpx2.URL(self._url("models"))
        except httpx2.InvalidURL:
            raise ValueError(f"the endpoint {self.where!r} is no address") from None
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._client: httpx2.AsyncClient | None = None

    def deadline(self, seconds: float | None = None) -> Deadline:
        """Return until when a request that begins now may take; None for the time of a reply."""
        seconds = self.timeout_s if seconds is None else seconds
        return Deadline(asyncio.get_running_loop().time() + seconds, seconds)

    @asynccontextmanager
    async def asked(self, path: str, body: bytes, deadline: Deadline) -> AsyncIterator[httpx2.Response]:
        """Send a body when there is room, and give the reply of which nothing but the head is read; raise UpstreamFault."""
        async with self._within(deadline):
            await self._slots.acquire()
        try:
            async with self._response("POST", path, body, deadline) as response:
                yield response
        finally:
            self._slots.release()

    @asynccontextmanager
    async def _response(self, method: str, path: str, body: bytes | None, deadline: Deadline) -> AsyncIterator[httpx2.Response]:
        async with self._within(deadline):
            response = await self._sent(method, path, body)
        try:
            yield response
        finally:
            await response.aclose()

    async def _sent(self, method: str, path: str, body: bytes | None) -> httpx2.Response:
        """Send a request; again where a connection that was kept open turns out to be closed: then nobody has read it."""
        while True:
            opened: list[str] = []

            async def note(event: str, _: object, opened: list[str] = opened) -> None:
                if event.endswith(".connect_tcp.started"):  # "connection", or "socks" where a proxy is asked
                    opened.append(event)

            client = self._open()
            request = client.build_request(method, self._url(path), content=body, extensions={"trace": note})
            try:
                return await client.send(request, stream=True)
            except (httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.WriteError):
                if opened:
                    raise

    @asynccontextmanager
    async def _within(self, deadline: Deadline) -> AsyncIterator[None]:
        """Raise UpstreamFault for what is late, or fails on the way."""
        try:
            async with asyncio.timeout_at(deadline.at):
                yield
        except TimeoutError:
            raise too_late(self.where, deadline.seconds) from None
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            raise transport_fault(error, self.where) from None

    async def pieces(self, response: httpx2.Response, deadline: Deadline | None = None) -> AsyncGenerator[bytes, None]:
        """Yield the body of a reply as it comes; raise UpstreamFault where it is cut or late.

        Without a ``deadline`` for all of it, each piece has the time of a reply.
        """
        body = response.aiter_bytes()
        while True:
            async with self._within(deadline or self.deadline()):
                piece = await anext(body, None)
            if piece is None:
                return
            yield piece

    async def read(self, response: httpx2.Response, deadline: Deadline) -> UpstreamReply:
        """Return a reply whole; raise UpstreamFault where it is too long, too."""
        most, body = LARGEST_REPLY if response.status_code < 300 else LARGEST_ERROR, bytearray()
        async for piece in self.pieces(response, deadline):
            body += piece
            if len(body) > most:
                raise UpstreamFault(f"the upstream {self.where} sent a reply too long to be read")
        return UpstreamReply(response.status_code, response.headers, bytes(body))

    async def post(self, path: str, body: bytes, deadline: Deadline) -> UpstreamReply:
        """Send a body and return the whole reply, whatever its status."""
        async with self.asked(path, body, deadline) as response:
            return await self.read(response, deadline)

    async def get(self, path: str, timeout_s: float) -> UpstreamReply:
        """Ask for something small, past the requests that wait."""
        deadline = self.deadline(timeout_s)
        async with self._response("GET", path, None, deadline) as response:
            return await self.read(response, deadline)

    async def close(self) -> None:
        """Close all connections."""
        if self._client is not None:
            await self._client.aclose()

    def _url(self, path: str) -> str:
        return f"{self._base}/{path}" + (f"?{self._query}" if self._query else "")

    def _open(self) -> httpx2.AsyncClient:
        """Return the client, opened by the loop that runs: the settings are checked before there is one."""
        if self._client is None:
            self._client = httpx2.AsyncClient(
                headers={
                    "authorization": f"Bearer {self.key.value}", "content-type": "application/json", "user-agent": "swift-rm",
                    "accept-encoding": "identity",
                },
                timeout=httpx2.Timeout(None, connect=CONNECT_S),
                limits=httpx2.Limits(max_connections=None, keepalive_expiry=IDLE_S),
                follow_redirects=False,
                trust_env=not is_loopback(host_of(self._base) or ""),
            )  # fmt: skip
        return self._client

    def content_type(self, headers: httpx2.Headers, usual: str) -> str:
        """Return a reply's content type as it came, or the ``usual`` one where a part of the key or what is no text is in it."""
        told = headers.get("content-type", "")
        return told if told.isascii() and not self.key.partly_in(told) else usual

    def checked(self, reply: UpstreamReply) -> object:
        """Return the JSON of a success; raise UpstreamFault where it is none, or where the key is in it."""
        if self.key.wholly_in(reply.body.decode("utf-8", "replace")):
            raise UpstreamFault(f"the upstream {self.where} sends the gateway's key back in its replies")
        if (kind := media_type(reply.headers)) != "application/json":
            raise unreadable_reply(self.where, f"the content type {self.key.shown(kind)!r} instead of JSON")
        try:
            found: object = json.loads(reply.body)
        except (ValueError, RecursionError):
            raise unreadable_reply(self.where, "a reply that is not JSON") from None
        return found


def media_type(headers: httpx2.Headers) -> str:
    """Return a reply's content type without its parameters."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()
