"""The description of the API at /openapi.json: every body, reply and status, for people and for programs that test it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from swift_rm.gateway.http.reply_models import Error, schema_of
from swift_rm.gateway.request.request import Limits
from swift_rm.gateway.request.request_models import ChatAsked, TextAsked

ASKED = (ChatAsked, TextAsked)
SAYS = {
    400: "a request that cannot be right", 401: "no token, or another than the server's",
    403: "a page of another site, or a server without a token asked under another name", 404: "no such model",
    408: "the body did not arrive in time", 413: "the body or the prompt is too large", 415: "the body is no JSON by its type",
    429: "the server is full", 502: "the upstream failed", 503: "the models are being loaded, or the server is about to end",
    504: "the upstream or the request took too long",
}  # fmt: skip
GUARDED = (401, 403)
OF_A_COMPLETION = tuple(SAYS)
STREAM = {"schema": {"description": "events, each with a chunk as its data, and `[DONE]` as the last one's"}}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what FastAPI is told of a route's errors."""
    return {status: {"model": Error, "description": SAYS[status]} for status in statuses}


def completion(reply: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """Return what FastAPI is told of the replies of a completion."""
    answer = {"model": reply, "description": "the completion", "content": {"text/event-stream": STREAM}}
    return {200: answer, **refusals(*OF_A_COMPLETION)}


def body_of(asked: type[BaseModel]) -> dict[str, Any]:
    """Return what FastAPI is told of a body that it does not parse."""
    schema = {"$ref": f"#/components/schemas/{asked.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def described(app: FastAPI, token: bool, names: Callable[[], list[str]], limits: Limits) -> Callable[[], dict[str, Any]]:
    """Return the app's ``openapi``: FastAPI's, and the bodies' schemas with the models' ``names`` and the server's limits.

    With a ``token``, also that it is needed.
    """
    most = {"n": limits.n, "best_of": limits.n, "max_tokens": limits.max_tokens, "max_completion_tokens": limits.max_tokens}

    def openapi() -> dict[str, Any]:
        told = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        components = told.setdefault("components", {})
        schemas = components.setdefault("schemas", {})
        for asked in ASKED:
            schema, parts = schema_of(asked)
            schema["properties"]["model"]["examples"] = names()
            for name in most.keys() & schema["properties"].keys():
                if most[name] is not None:
                    schema["properties"][name]["anyOf"][0]["maximum"] = most[name]
            schemas |= {asked.__name__: schema, **parts}
        if token:
            components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            told["security"] = [{"token": []}]
            told["paths"]["/health"]["get"]["security"] = []
        return told

    return openapi
