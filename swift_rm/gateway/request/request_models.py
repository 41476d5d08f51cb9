"""The JSON of requests, checked by pydantic: OpenAI's fields, and those of this gateway."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from swift_rm.selection.rule_table import ServedRule

Ids = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]


class _Known(BaseModel):
    """What is checked; other fields are kept."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class Part(_Known):
    """One part of a message's content; text is all that is understood."""

    type: str
    text: str | None = None


class Message(_Known):
    """One message of a conversation."""

    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: str | list[Part] | None = None


class StreamOptions(_Known):
    """What a stream tells besides text."""

    include_usage: bool | None = None


class CompletionFields(_Known):
    """What both kinds of requests have in common."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    n: Annotated[int, Field(ge=1, description="how many responses to return: of N candidates the first n")] | None = None
    best_of: Annotated[int, Field(ge=1, description="N: how many candidates to draw")] | None = None
    select: ServedRule | None = Field(
        None, description="the rule that chooses among N candidates; a model's name may say it instead"
    )
    abstain_below: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="answer with the finish reason `abstained` where the chosen one is less probable to be right"
    )
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = Field(None, description="give each choice its `token_ids` (a model here)")
    return_candidates: bool | None = Field(None, description="give all N candidates, in `swift.candidates`")


class ChatAsked(CompletionFields):
    """A request for /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="for the chat template")


class TextAsked(CompletionFields):
    """A request for /v1/completions: one prompt as text or token ids, or a list of such."""

    prompt: str | Ids | Annotated[list[str], Field(min_length=1)] | Annotated[list[Ids], Field(min_length=1)]
