"""Parse a completion's request: what it asks for, once names, limits and defaults have been applied to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from swift_rm.gateway.request.errors import GatewayError, refused
from swift_rm.gateway.request.model_names import RuleChoice, rule_of_name
from swift_rm.gateway.request.request_models import ChatAsked, TextAsked
from swift_rm.gateway.request.settings import Settings
from swift_rm.selection.rule_table import DEFAULT_RULE


@dataclass(frozen=True)
class RequestLimits:
    """What a request may ask for: candidates (N times prompts), new tokens (None: what the model holds), prompt characters."""

    n: int = 64
    max_tokens: int | None = None
    prompt_chars: int = 100_000

    @classmethod
    def of(cls, settings: Settings) -> RequestLimits:
        """Return the limits that the settings say."""
        return cls(settings.max_n, settings.max_tokens or None, settings.max_prompt_chars)


@dataclass(frozen=True)
class CompletionRequest:
    """One request: its prompts (messages, text or token ids), and how each is answered.

    Each of the ``prompts`` gets ``drawn`` candidates, of which the first ``returned`` are told, in the order of ``rule`` (None:
    as drawn). ``max_tokens`` and ``seed`` None leave them open. ``others`` are fields that are not ours: an upstream gets them.
    """

    chat: bool
    model: str
    prompts: Sequence[Any]
    rule: str | None = None
    drawn: int = 1
    returned: int = 1
    abstain_below: float | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    stream: bool = False
    include_usage: bool = False
    template: Mapping[str, Any] = field(default_factory=dict)
    return_token_ids: bool = False
    return_candidates: bool = False
    others: Mapping[str, Any] = field(default_factory=dict)


def choose_rule(raw: Mapping[str, Any], plain: str) -> RuleChoice:
    """Return rule and N of a request's JSON, by its model's name or its fields ``best_of`` and ``select``."""
    if not isinstance(raw.get("model"), str):
        raise refused(f"'model' must be a name, {plain!r} say", "model")
    chosen = rule_of_name(raw["model"], plain)
    best_of, select = raw.get("best_of"), raw.get("select")
    if chosen.rule is not None:
        if best_of not in (None, chosen.n) or select not in (None, chosen.rule):
            raise refused(f"the model {raw['model']!r} says rule and N already: leave out best_of and select", "best_of")
        return chosen
    if best_of is None and select is not None:
        raise refused("'select' chooses among N candidates: say how many with 'best_of'", "select")
    return RuleChoice(select or DEFAULT_RULE, best_of) if best_of not in (None, 1) else chosen


def parse_request(raw: Mapping[str, Any], chat: bool, plain: str, limits: RequestLimits) -> CompletionRequest:
    """Return what a request's JSON asks for; raise GatewayError with a sentence that helps, status 400 or 404."""
    chosen = choose_rule(raw, plain)
    try:
        asked: ChatAsked | TextAsked = (ChatAsked if chat else TextAsked).model_validate(raw)
    except ValidationError as error:
        raise _invalid(error) from None
    if isinstance(asked, ChatAsked):
        prompts: list[Any] = [[message.model_dump(exclude_unset=True) for message in asked.messages]]
        tokens, template = asked.max_completion_tokens or asked.max_tokens, asked.chat_template_kwargs or {}
    else:
        prompts, tokens, template = _prompts(asked.prompt), asked.max_tokens, {}
    returned = asked.n or 1
    drawn = chosen.n or returned
    check_limits(prompts, drawn, tokens, limits)
    if returned > drawn:
        raise refused(f"n={returned} responses cannot be returned of {drawn} candidates: ask for a larger N", "n")
    if asked.temperature == 0 and drawn > 1:
        raise refused(
            f"temperature 0 would make all {drawn} candidates equal: leave the temperature out, or ask for one response of "
            f"{plain!r}", "temperature",
        )  # fmt: skip
    if chosen.rule is None and asked.abstain_below is not None and asked.stream:
        raise refused("'abstain_below' needs the whole response, which a plain model's stream does not wait for", "abstain_below")
    stops = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
    return CompletionRequest(
        chat, asked.model, prompts, chosen.rule, drawn, returned, asked.abstain_below,
        1.0 if asked.temperature is None else asked.temperature, 1.0 if asked.top_p is None else asked.top_p,
        asked.top_k and max(0, asked.top_k), tokens or limits.max_tokens, tuple(stops), asked.seed, bool(asked.stream),
        bool(asked.stream_options and asked.stream_options.include_usage), template, bool(asked.return_token_ids),
        bool(asked.return_candidates), asked.model_extra or {},
    )  # fmt: skip


def check_limits(prompts: Sequence[Any], drawn: int, tokens: int | None, limits: RequestLimits) -> None:
    """Raise GatewayError, status 400, for more candidates, new tokens or characters than the server allows."""
    if drawn * len(prompts) > limits.n:
        each = f" for each of {len(prompts)} prompts" if len(prompts) > 1 else ""
        raise refused(f"{drawn} candidates{each} are more than this server allows, {limits.n}", "n")
    if limits.max_tokens is not None and (tokens or 0) > limits.max_tokens:
        raise refused(f"max_tokens={tokens} is more than this server allows, {limits.max_tokens}", "max_tokens")
    size = sum(map(size_of, prompts))
    if size > limits.prompt_chars:
        raise GatewayError(
            413, f"the prompt has {size} characters, and this server takes up to {limits.prompt_chars}", param="messages"
        )


def size_of(value: Any) -> int:
    """Return the number of characters in a prompt, whatever its form; a token id is one."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(size_of, value.values()))
    return sum(map(size_of, value)) if isinstance(value, list) else 1


def _prompts(prompt: Any) -> list[Any]:
    several = isinstance(prompt, list) and not isinstance(prompt[0], int)
    return prompt if several else [prompt]


def _invalid(error: ValidationError) -> GatewayError:
    """Return the first thing that is wrong with a request, by its field; of its content not more than a little."""
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "the request"
    given = "" if first["type"] == "missing" else f", got {first['input']!r:.60}"
    return refused(f"{where}: {first['msg'].lower()}{given}", where)
