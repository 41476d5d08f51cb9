"""The gateway's HTTP application: OpenAI's routes, health and metrics, behind the layers around every request.

These record each request, turn an unexpected exception into a 500 reply and a log entry, and let in who may ask.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from swift_rm._version import __version__
from swift_rm.gateway.app.access import Access
from swift_rm.gateway.app.backend_lifecycle import STARTING
from swift_rm.gateway.app.completions import Completions, QueueLimit
from swift_rm.gateway.http.disconnects import ClientGone, Receive
from swift_rm.gateway.http.metrics import GONE, Metrics
from swift_rm.gateway.http.openapi import (
    GUARDED,
    ChatCompletion,
    Health,
    Model,
    Models,
    TextCompletion,
    body_of,
    completion,
    described,
    refusals,
)
from swift_rm.gateway.http.request_log import App, RequestLog, Scope, Send, record_of
from swift_rm.gateway.http.responses import error_reply, json_reply, to_gateway_error
from swift_rm.gateway.request.backend import Backend
from swift_rm.gateway.request.completion_request import RequestLimits
from swift_rm.gateway.request.errors import LATER, GatewayError, ending
from swift_rm.gateway.request.model_names import listed_models, rule_of_name
from swift_rm.gateway.request.request_models import ChatAsked, TextAsked
from swift_rm.gateway.request.settings import Settings

HEALTH_S = 5.0  # for a backend to say how it is
NOWHERE = "there is nothing at this path: the API is at /v1/chat/completions, /v1/completions and /v1/models"


def create_app(backend: Backend, settings: Settings, *, token: str | None = None, metrics: Metrics | None = None) -> FastAPI:
    """Return the app that serves a backend; ``token`` is what requests must bring.

    The backend's life is the caller's: neither ``start`` nor ``close`` is called. Raises ValueError for a token without
    characters, or for none although others than this machine can reach ``settings.host``.
    """
    if token is not None and not token.strip():
        raise ValueError("the token is empty")
    if token is None and not settings.loopback:
        raise ValueError(f"a server on {settings.host!r}, which others can reach, needs a token: set {settings.token_env}")
    metrics = metrics or Metrics()
    queue_limit = QueueLimit(settings.queue, metrics.rejected)
    app = FastAPI(
        title="swift-rm", version=__version__, description="The best of N answers, for any OpenAI client.",
        docs_url=None, redoc_url=None, redirect_slashes=False,  # those pages load scripts from elsewhere
    )  # fmt: skip
    app.openapi = described(  # type: ignore[method-assign]
        app, token is not None, lambda: listed_models(backend.name, settings.max_n, backend.rewards), RequestLimits.of(settings)
    )
    completions = Completions(backend, settings, queue_limit, metrics)
    _add_completions(app, completions)
    _add_models(app, backend, settings)
    _add_state(app, backend, metrics)
    if settings.page:
        from swift_rm.gateway.app.question_page import add_page

        add_page(app, completions)
    app.add_exception_handler(HTTPException, _no_route)
    app.add_exception_handler(ClientGone, _gone)
    app.add_exception_handler(GatewayError, _refused)
    app.add_middleware(Access, token=token)
    app.add_middleware(ErrorLayer)
    app.add_middleware(RequestLog, metrics=metrics, routes=lambda: [getattr(route, "path", "") for route in app.routes])
    return app


class _DeferredReply(Response):
    """A reply that is worked out as it is sent, so that all of a request's work ends with it."""

    def __init__(self, work: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        super().__init__()
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        await self._work(scope, receive, send)


def _add_completions(app: FastAPI, completions: Completions) -> None:
    @app.post("/v1/chat/completions", openapi_extra=body_of(ChatAsked), responses=completion(ChatCompletion))
    async def create_chat_completion() -> Response:
        """Answer a conversation; the model's name, or `best_of` and `select`, choose how."""
        return _DeferredReply(lambda *request: completions(True, *request))

    @app.post("/v1/completions", openapi_extra=body_of(TextAsked), responses=completion(TextCompletion))
    async def create_completion() -> Response:
        """Answer a prompt, or several; the model's name, or `best_of` and `select`, choose how."""
        return _DeferredReply(lambda *request: completions(False, *request))


def _add_models(app: FastAPI, backend: Backend, settings: Settings) -> None:
    created = int(time.time())

    def shown(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": created, "owned_by": "swift-rm"}

    @app.get("/v1/models", responses={200: {"model": Models}, **refusals(*GUARDED, 503)})
    async def list_models() -> Response:
        """List models: the plain one, and examples of names that choose a rule and N."""
        names = listed_models(backend.name, settings.max_n, backend.rewards)
        return json_reply({"object": "list", "data": list(map(shown, names))})

    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}

    @app.get(
        "/v1/models/{name:path}", openapi_extra={"parameters": [name]},
        responses={200: {"model": Model}, **refusals(*GUARDED, 404, 503)},
    )  # fmt: skip
    async def retrieve_model(request: Request) -> Response:
        """Tell whether a name can be asked for."""
        wanted = request.path_params["name"]
        chosen = rule_of_name(wanted, backend.name)
        if chosen.n is not None and (chosen.n > settings.max_n or not backend.rewards):
            most = f"this server allows N up to {settings.max_n}" if backend.rewards else "this server has no reward model"
            raise GatewayError(404, f"the model {wanted!r} is not there: {most}", param="model", code="model_not_found")
        return json_reply(shown(wanted))


def _add_state(app: FastAPI, backend: Backend, metrics: Metrics) -> None:
    @app.get("/health", responses={200: {"model": Health}, 503: {"model": Health, "description": "not ready"}})
    async def health() -> Response:
        """Tell whether requests are answered."""
        try:
            async with asyncio.timeout(HEALTH_S):
                reason = await backend.health()
        except TimeoutError:
            reason = f"no word within {HEALTH_S:g} s"
        if reason is None:
            return json_reply({"status": "ok"})
        status = STARTING if reason == STARTING else "unavailable"
        return json_reply({"status": status, "reason": reason}, 503, LATER)

    text = {"description": "Prometheus's text format", "content": {"text/plain": {"schema": {"type": "string"}}}}

    @app.get("/metrics", response_class=Response, responses={200: text, **refusals(*GUARDED)})
    async def read_metrics() -> Response:
        """Tell what has been counted."""
        return Response(metrics.text(), media_type=metrics.content_type)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = NOWHERE if error.status_code == 404 else f"this path does not take {request.method[:20]}"
    return error_reply(GatewayError(error.status_code, message, headers=error.headers))


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=GONE)  # for the log: nobody reads it


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, GatewayError)
    return error_reply(error)


class ErrorLayer:
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
            error = ending() if isinstance(kept.error, asyncio.CancelledError) else to_gateway_error(kept.error, record)
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
