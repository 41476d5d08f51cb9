"""What can go wrong with an endpoint, by what is to be done: try again, change the request, or give up.

Each is one sentence, without a part of the key.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from swift_rm.api.keys import without_secrets
from swift_rm.api.retry_delay import LONGEST_RETRY_AFTER_S, retry_after_s

if TYPE_CHECKING:
    from swift_rm.api.keys import ApiKey
    from swift_rm.selection.candidates import BestOfN

RETRIED_STATUSES = (408, 409, 429)  # HTTP statuses, beside 500 and above


class ApiFailure(OSError):
    """An endpoint failed although it was asked again; ``results`` are what came nevertheless, None where nothing did."""

    def __init__(self, message: str, results: Sequence[BestOfN | None] = ()) -> None:
        super().__init__(message)
        self.results = list(results)


class FatalError(ValueError):
    """An error that every request would meet: a wrong key, a model that is not there, a server that is not to be trusted."""


class RequestRefused(ValueError):
    """A request that gets no usable answer however often it is sent; another question's may."""


class UnusableReply(RequestRefused):
    """A reply that came, and lacks what was asked for."""


class RetryableFault(Exception):
    """A reply that is none, or a fault on the way to it: worth another try, not before ``wait_s`` where that is known."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class ReplyTooLong(Exception):
    """A reply that is longer than any that is read, or has not ended in time."""


def fault_of(error: BaseException, where: str, model: str, key: ApiKey, timeout_s: float) -> BaseException:
    """Return the error that ``error`` means for a request to ``model`` at ``where``: RetryableFault if it may be made again."""
    import openai

    if isinstance(error, ReplyTooLong) or isinstance(error.__cause__, ReplyTooLong):
        return RequestRefused(f"{where} sends a reply too long to be read; set a limit of tokens (--max-new-tokens)")
    if isinstance(error, openai.APIStatusError):
        return _status_fault(error, where, model, key)
    if isinstance(error, openai.APITimeoutError):
        return RetryableFault(f"no reply within {timeout_s:g} s")
    if isinstance(error, openai.APIConnectionError):
        return RetryableFault(f"the connection failed or was cut ({type(error.__cause__ or error).__name__})")
    if isinstance(error, openai.OpenAIError):
        return RetryableFault(f"no reply ({type(error).__name__})")
    if isinstance(error, ValueError | TypeError):  # half a surrogate pair, say, which no request can carry
        return RequestRefused(f"a request could not be written ({type(error).__name__}): is every message text?")
    return error


def _status_fault(error: Any, where: str, model: str, key: ApiKey) -> Exception:
    status, headers = error.status_code, error.response.headers
    words = key.shown(error_words(error.body))
    said = f"HTTP status {status}" + (f": {words!r}" if words else "")
    if status in (401, 403):  # not the endpoint's own words: they may hold a part of the key
        return FatalError(
            f"{where} refuses the key: HTTP status {status}; set {key.name} to one that may use the model {model!r}"
        )
    if 300 <= status < 400:  # not followed: questions would go to a host that nobody named
        to = key.shown(without_secrets(headers.get("location", "")))
        return FatalError(f"{where} redirects to {to!r} (HTTP status {status}): if that is right, give its address")
    if status == 404:
        return FatalError(
            f"{where} has no model {model!r} or no chat completions: {said}; is the name right, and does the address end in /v1?"
        )
    if (status in RETRIED_STATUSES or status >= 500) and headers.get("x-should-retry") != "false":
        wait_s = retry_after_s(headers)
        told = f", which asks for a wait of {wait_s:.0f} s" if wait_s is not None and wait_s > LONGEST_RETRY_AFTER_S else ""
        return RetryableFault(said + told, wait_s)
    if status in RETRIED_STATUSES or status >= 500:
        return RetryableFault(f"{said}, not to be tried again", math.inf)
    return RequestRefused(f"{where} does not accept the request, {said}; change what it names")


def error_words(body: Any) -> str:
    """Return what an error's JSON says to people, wherever servers put it."""
    for value in (body.get("message"), body.get("detail"), body.get("error")) if isinstance(body, dict) else ():
        if isinstance(value, dict):
            value = value.get("message")
        if isinstance(value, str):
            return value
    return ""
