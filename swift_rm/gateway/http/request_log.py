"""The outermost layer of the app: every request gets an id, an entry in log and metrics, and its reply careful headers."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from swift_rm.gateway.http.disconnects import Receive
from swift_rm.gateway.http.logs import log_event
from swift_rm.gateway.http.metrics import GONE, Metrics

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

PLAIN = "plain"  # what is noted as the rule where none chooses
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),  # with none, browsers send "Origin: null" with the page's own form
    (b"cache-control", b"no-store"),
)  # fmt: skip
_ID = re.compile(rb"[A-Za-z0-9_-]{1,64}")


@dataclass
class RequestRecord:
    """What is noted of a request while it is answered; ``fields`` go to the log, ``rule`` also to the metrics.

    ``status`` 0 means that no reply has begun.
    """

    id: str
    began: float = field(default_factory=time.perf_counter)
    status: int = 0
    rule: str = ""
    fields: dict[str, Any] = field(default_factory=dict)


def record_of(scope: Scope) -> RequestRecord:
    """Return the record of a request."""
    record: RequestRecord = scope["swift_rm_record"]
    return record


class RequestLog:
    """An ASGI layer that keeps a :class:`RequestRecord` of each request, and logs and counts it at its end.

    Paths and methods are named as far as they are the app's own, whose ``routes`` are templates; others are "other".
    """

    def __init__(self, app: App, metrics: Metrics, routes: Callable[[], Iterable[str]]) -> None:
        self.app, self.metrics, self._routes = app, metrics, routes
        self._templates: frozenset[str] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        record = RequestRecord(given.decode() if _ID.fullmatch(given) else f"req-{secrets.token_hex(12)}")
        scope["swift_rm_record"] = record
        ours = (*HEADERS, (b"x-request-id", record.id.encode()))
        names = {name for name, _ in ours}

        async def sending(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                theirs = (each for each in message.get("headers", ()) if each[0].lower() not in names)
                message = {**message, "headers": [*theirs, *ours]}
            await send(message)

        self.metrics.began()
        try:
            await self.app(scope, receive, sending)
        finally:
            self._ended(record, scope)

    def _ended(self, record: RequestRecord, scope: Scope) -> None:
        seconds, route, status = time.perf_counter() - record.began, self._route(scope), record.status or GONE
        self.metrics.ended(route, status, record.rule, seconds)
        log_event(
            logging.INFO, "request", id=record.id, method=scope["method"] if scope["method"] in METHODS else "other",
            route=route, status=status, seconds=round(seconds, 6), **record.fields,
        )  # fmt: skip

    def _route(self, scope: Scope) -> str:
        if self._templates is None:
            self._templates = frozenset(self._routes())
        path = getattr(scope.get("route"), "path", scope["path"])
        return path if path in self._templates else "other"
