"""What goes wrong between the gateway and its upstream: one sentence, without a key, and whether another try may help."""

from __future__ import annotations

import json
from collections.abc import Mapping

import httpx2

from swift_rm.api.failures import RETRIED_STATUSES, error_words
from swift_rm.api.keys import ApiKey
from swift_rm.api.retry_delay import retry_after_s
from swift_rm.gateway.request.errors import GatewayError

_PASSED_ON = ("retry-after", "retry-after-ms")  # headers of a reply that clients get, too


class UpstreamFault(GatewayError):
    """A request that the upstream did not answer; ``again`` tells whether it may when asked again, after ``wait_s``.

    A fault that was ``refused`` is the request's own: the upstream does not accept what it asks for.
    """

    def __init__(
        self,
        message: str,
        status: int = 502,
        *,
        again: bool = False,
        wait_s: float | None = None,
        headers: Mapping[str, str] | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(status, message, headers=headers, code=code)
        self.again, self.wait_s, self.refused = again, wait_s, status in (400, 413, 422)


def transport_fault(error: Exception, where: str) -> UpstreamFault:
    """Return what a connection that failed means: its text is not shown, it may hold an address with a key."""
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.ProxyError):
        first: BaseException = error  # a name that is not known, a certificate that is not trusted
        while (before := first.__cause__ or first.__context__) is not None:
            first = before
        return UpstreamFault(f"the upstream {where} cannot be reached ({type(first).__name__})", again=True)
    return UpstreamFault(f"the connection to the upstream {where} was cut ({type(error).__name__})", again=True)


def too_late(where: str, timeout_s: float) -> UpstreamFault:
    """Return what a reply that did not come in time means."""
    return UpstreamFault(f"the upstream {where} did not answer within {timeout_s:g} s", 504, code="timeout")


def unreadable_reply(where: str, what: str) -> UpstreamFault:
    """Return what a reply that cannot be read means."""
    return UpstreamFault(f"the upstream {where} sent {what}", again=True)


def status_fault(status: int, headers: Mapping[str, str], body: bytes, where: str, key: ApiKey) -> UpstreamFault:
    """Return what an HTTP status that is no success means."""
    if status in (401, 403):  # not the upstream's own words: they may hold a part of the key
        return UpstreamFault(
            f"the upstream {where} refuses the gateway's key: HTTP status {status}; who runs the gateway sets {key.name}"
        )
    if status == 407:
        return UpstreamFault(f"the proxy in front of the upstream {where} refuses the gateway: HTTP status 407")
    if status < 400:  # not followed: prompts would go to a host that nobody named
        return UpstreamFault(f"the upstream {where} redirects to another address (HTTP status {status}), which is not followed")
    words = key.shown(error_words(json_or_none(body)))
    said = f"HTTP status {status}" + (f": {words!r}" if words else "")
    if status == 429:
        again = headers.get("x-should-retry") != "false"
        return UpstreamFault(
            f"the upstream {where} is asked for too much: {said}", 429, again=again, wait_s=retry_after_s(headers),
            headers=retry_headers(headers),
        )  # fmt: skip
    if status in RETRIED_STATUSES or status >= 500:
        return UpstreamFault(f"the upstream {where} failed: {said}", again=True, wait_s=retry_after_s(headers))
    if status in (404, 405):
        return UpstreamFault(f"the upstream {where} has no such model or route: {said}; does its address end in /v1?")
    return UpstreamFault(f"the upstream {where} does not accept the request: {said}", status)


def retry_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of a reply that clients get, too: those that say how long to wait, and nothing else."""
    return {name: headers[name] for name in _PASSED_ON if retry_after_s({name: headers.get(name, "")}) is not None}


def json_or_none(body: bytes) -> object:
    """Return the JSON of a body, None where it is none."""
    try:
        found: object = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return found
