"""The JSON of replies, for the description of the API; replies are written without a check against it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


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
