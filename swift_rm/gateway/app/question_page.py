"""Serve the page at /: people ask a question and see the candidates, token by token."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from swift_rm.gateway.app.question_html import PAGE_POLICY, QuestionOutcome, QuestionPage, render
from swift_rm.gateway.http.body import read_body
from swift_rm.gateway.http.disconnects import run_while_connected
from swift_rm.gateway.http.replies import ABSTAINED, Replies
from swift_rm.gateway.http.request_log import PLAIN, record_of
from swift_rm.gateway.request.backend import PromptResult
from swift_rm.gateway.request.completion_request import parse_request
from swift_rm.gateway.request.errors import GatewayError, refused
from swift_rm.reward.identity import short_name
from swift_rm.selection.rule_table import DEFAULT_RULE

if TYPE_CHECKING:
    from fastapi import FastAPI

    from swift_rm.gateway.app.completions import Completions

FORM = "application/x-www-form-urlencoded"
CANDIDATES = 8
FIELDS = 32  # a form may have
NUMBERS = {"n": int, "temperature": float, "max_tokens": int, "abstain_below": float}
NAMES = {"n": "best_of"}  # of fields that a request calls otherwise
NO_REWARDS = "There is no reward model here, so nothing to choose by: restart the server with --reward-model."
LOADING = "The models are being loaded. This page tries again by itself."


def add_page(app: FastAPI, completions: Completions) -> None:
    """Add the page to an app; what it is asked is let in, counted and logged as completions are."""
    backend, settings = completions.backend, completions.settings
    model = settings.name or short_name(settings.model)

    def reply(status: int = 200, headers: dict[str, str] | None = None, **shown: Any) -> Response:
        html = render(QuestionPage(model, settings, **shown))
        return HTMLResponse(html, status, {"content-security-policy": PAGE_POLICY, **(headers or {})})

    def closed() -> Response | None:
        """Return the page without a form where nothing can be asked."""
        try:
            _ = backend.name
        except GatewayError as error:  # before the backend's life
            return reply(error.status, {"refresh": "2", **error.headers}, closed=LOADING)
        return None if backend.rewards else reply(closed=NO_REWARDS)

    async def show(http: Request) -> Response:
        usual = {"n": str(min(CANDIDATES, settings.max_n)), "rule": DEFAULT_RULE, "temperature": "1"}
        return closed() or reply(typed=usual)

    async def ask(http: Request) -> Response:
        if (shut := closed()) is not None:
            return shut
        typed: dict[str, str] = {}
        try:
            most = settings.max_body_kib * 1024
            typed = read_form(await read_body(http.headers, http.receive, most, wanted=FORM))
            request = parse_request(request_of_form(typed, backend.name), True, backend.name, completions.limits)
            record, replies = record_of(http.scope), Replies(request)
            record.rule = request.rule or PLAIN
            completions.log_content(record, prompt=typed["question"])
            began = time.perf_counter()
            with completions.queue_limit:
                work = backend.answer(request, views=True)
                (answer,) = await run_while_connected(http.receive, work, settings.timeout_s)
        except GatewayError as error:
            return reply(error.status, error.headers, typed=typed, error=error)
        completions.note(record, replies, [answer])
        outcome = outcome_of(replies, answer, time.perf_counter() - began)
        return await asyncio.to_thread(reply, typed=typed, outcome=outcome)  # half a second, where it is 64 times 1,024 tokens

    app.add_route("/", show, methods=["GET"], include_in_schema=False)
    app.add_route("/", ask, methods=["POST"], include_in_schema=False)


def read_form(body: bytes) -> dict[str, str]:
    """Return a form's fields; raise GatewayError, status 400, for what is no form."""
    try:
        fields = parse_qs(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=FIELDS)
    except ValueError:
        raise refused("the form cannot be read: it is not UTF-8, or has too many fields") from None
    return {name: values[-1].replace("\r\n", "\n") for name, values in fields.items()}


def request_of_form(typed: dict[str, str], model: str) -> dict[str, Any]:
    """Return the request for a chat completion that a form stands for; a number that is none stays text, and is refused later."""
    asked: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": typed.get("question", "")}]}
    if not typed.get("question", "").strip():
        raise refused("type a question first", "question")
    for name, kind in NUMBERS.items():
        if said := typed.get(name, "").strip():
            try:
                asked[NAMES.get(name, name)] = kind(said)
            except ValueError:
                asked[NAMES.get(name, name)] = said
    return {**asked, "select": typed["rule"]} if typed.get("rule") and "best_of" in asked else asked


def outcome_of(replies: Replies, answer: PromptResult, seconds: float) -> QuestionOutcome:
    """Return what the page shows of an answer; whether it abstains is as in any reply."""
    choice = replies.whole([answer])["choices"][0]
    message = choice["message"]
    refusal = message["refusal"] if choice["finish_reason"] == ABSTAINED else None
    rule, tokens = replies.request.rule, answer.completion_tokens
    return QuestionOutcome(answer.views, message["content"], refusal, answer.drawn, tokens, seconds, rule, answer.ended)
