"""The description of the API at /openapi.json: every body, reply and status, for people and for programs that test it.

Replies are written without a check against these models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict, Field

from swift_rm.gateway.request.completion_request import RequestLimits
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


def described(app: FastAPI, token: bool, names: Callable[[], list[str]], limits: RequestLimits) -> Callable[[], dict[str, Any]]:
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


class _Told(BaseModel):
    model_config = ConfigDict(extra="allow")


class ErrorDetail(_Told):
    """What went wrong: a sentence, its kind, the field it is about and a code for programs."""

    message: str
    type: str | None
    param: str | None
    code: str | int | None


class Error(_Told):
    """The body of every reply that is not an answer, in OpenAI's format."""

    error: ErrorDetail


class Usage(_Told):
    """Tokens of the prompts, and of all candidates that were drawn."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ReplyMessage(_Told):
    """A response; `refusal` says why there is none."""

    role: str
    content: str | None = None
    refusal: str | None = None


class Choice(_Told):
    """What the choices of both kinds have in common."""

    index: int
    finish_reason: str | None = Field(description="stop, length, or abstained: no candidate was good enough")
    reward: float | None = Field(None, description="a logit; null where it is not known")
    probability: float | None = Field(None, description="calibrated probability of being right; null where it is not known")


class ChatChoice(Choice):
    """One response of a conversation."""

    message: ReplyMessage


class TextChoice(Choice):
    """One response to a prompt."""

    text: str


class Told(_Told):
    """What the gateway did: rule and N, how many candidates were drawn and why no more, and the chosen one's reward."""

    rule: str | None = None
    n: int
    drawn: int
    ended: str
    reward: float | None = None
    probability: float | None = None


class Completion(_Told):
    """What the replies of both kinds have in common; `swift` is missing where an upstream's reply passes through."""

    id: str
    created: int
    model: str
    usage: Usage | None = None
    swift: Told | None = None


class ChatCompletion(Completion):
    """The reply of /v1/chat/completions."""

    object: str = Field(examples=["chat.completion"])
    choices: list[ChatChoice]


class TextCompletion(Completion):
    """The reply of /v1/completions."""

    object: str = Field(examples=["text_completion"])
    choices: list[TextChoice]


class Model(_Told):
    """A model's name: the plain one, or one that chooses a rule and N."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Models(_Told):
    """The names that can be asked for; there are more: swift-RULE-N."""

    object: Literal["list"]
    data: list[Model]


class Health(_Told):
    """Whether requests are answered, and why not."""

    status: Literal["ok", "starting", "unavailable"]
    reason: str | None = None


def schema_of(model: type[BaseModel]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a model's JSON schema, and the schemas of its parts by their names in OpenAPI's components."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    return schema, schema.pop("$defs", {})
