"""What a client is told instead of an answer: an HTTP status and a sentence, in OpenAI's error format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}
LATER = {"retry-after": "5"}  # seconds
UPSTREAM = "upstream_error"  # the type of what a server behind the gateway did: statuses 502 and 504


class GatewayError(Exception):
    """A request that is not answered: ``status`` and one sentence, with the field ``param`` and a ``code`` for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Return OpenAI's JSON of it."""
        kind = TYPES.get(self.status, UPSTREAM if self.status > 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def ending() -> GatewayError:
    """Return the error of a request that the end of the server cuts off: status 503."""
    return GatewayError(503, "the server is about to end: ask again soon", code="stopping", headers=LATER)


def refused(message: str, param: str | None = None, code: str | None = None) -> GatewayError:
    """Return the error of a request that cannot be right: status 400."""
    return GatewayError(400, message, param=param, code=code)
