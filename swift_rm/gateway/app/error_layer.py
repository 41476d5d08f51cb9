"""The layer where what nobody foresaw ends: a sentence for the client, type and frames for the log."""

from __future__ import annotations

import asyncio
from types import TracebackType

from swift_rm.gateway.http.disconnects import Receive
from swift_rm.gateway.http.request_log import App, Scope, Send, record_of
from swift_rm.gateway.http.responses import error_reply, told
from swift_rm.gateway.request.errors import ending


class Failing:
    """An ASGI layer that answers for an app that raised: uvicorn would log the exception's words, which may hold a prompt."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        with _Kept() as kept:
            await self.app(scope, receive, send)
        if kept.error is not None:
            record = record_of(scope)
            error = ending() if isinstance(kept.error, asyncio.CancelledError) else told(kept.error, record)
            if not record.status:
                return await error_reply(error)(scope, receive, send)
            record.fields["failed"] = error.status


class _Kept:
    """Keeps an exception that would leave its block, unless it ends the process; tasks are cancelled by the server's end."""

    error: BaseException | None = None

    def __enter__(self) -> _Kept:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        self.error = error if isinstance(error, (Exception, asyncio.CancelledError)) else None
        return self.error is not None
