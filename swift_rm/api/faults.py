"""What a failed request means: try it again, change it, or give up; in one sentence, without a part of the key."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from swift_rm.api.client import TooLong
from swift_rm.api.failures import Hopeless, Malformed, Refused
from swift_rm.api.keys import without_secrets
from swift_rm.api.retry_delay import LONGEST_TOLD_S, told_to_wait

if TYPE_CHECKING:
    from swift_rm.api.endpoint import Endpoint

AGAIN = (408, 409, 429)  # HTTP statuses, beside 500 and above


def fault_of(error: BaseException, asked: Endpoint) -> BaseException:
    """Return what a request that failed with ``error`` means to who ``asked``: Malformed where it may be made again."""
    import openai

    if isinstance(error, TooLong) or isinstance(error.__cause__, TooLong):
        return Refused(f"{asked.where} sends a reply too long to be read; set a limit of tokens (--max-new-tokens)")
    if isinstance(error, openai.APIStatusError):
        return _status_fault(error, asked)
    if isinstance(error, openai.APITimeoutError):
        return Malformed(f"no reply within {asked.timeout_s:g} s")
    if isinstance(error, openai.APIConnectionError):
        return Malformed(f"the connection failed or was cut ({type(error.__cause__ or error).__name__})")
    if isinstance(error, openai.OpenAIError):
        return Malformed(f"no reply ({type(error).__name__})")
    if isinstance(error, ValueError | TypeError):  # half a surrogate pair, say, which no request can carry
        return Refused(f"a request could not be written ({type(error).__name__}): is every message text?")
    return error


def _status_fault(error: Any, asked: Endpoint) -> Exception:
    status, headers = error.status_code, error.response.headers
    words = asked.key.shown(words_of(error.body))
    said = f"HTTP status {status}" + (f": {words!r}" if words else "")
    if status in (401, 403):  # not the endpoint's own words: they may hold a part of the key
        return Hopeless(
            f"{asked.where} refuses the key: HTTP status {status}; set {asked.key.name} to one that may use the model "
            f"{asked.model!r}"
        )
    if 300 <= status < 400:  # not followed: questions would go to a host that nobody named
        to = asked.key.shown(without_secrets(headers.get("location", "")))
        return Hopeless(f"{asked.where} redirects to {to!r} (HTTP status {status}): if that is right, give its address")
    if status == 404:
        return Hopeless(
            f"{asked.where} has no model {asked.model!r} or no chat completions: {said}; is the name right, and does the "
            "address end in /v1?"
        )
    if (status in AGAIN or status >= 500) and headers.get("x-should-retry") != "false":
        wait_s = told_to_wait(headers)
        told = f", which asks for a wait of {wait_s:.0f} s" if wait_s is not None and wait_s > LONGEST_TOLD_S else ""
        return Malformed(said + told, wait_s)
    if status in AGAIN or status >= 500:
        return Malformed(f"{said}, not to be tried again", math.inf)
    return Refused(f"{asked.where} does not accept the request, {said}; change what it names")


def words_of(body: Any) -> str:
    """Return what an error's JSON says to people, wherever servers put it."""
    for value in (body.get("message"), body.get("detail"), body.get("error")) if isinstance(body, dict) else ():
        if isinstance(value, dict):
            value = value.get("message")
        if isinstance(value, str):
            return value
    return ""
