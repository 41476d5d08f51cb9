"""How many requests are taken in at once: those beyond are told so at once, instead of waiting for longer than they would."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from swift_rm.gateway.request.errors import GatewayError


class Admission:
    """A bounded count of requests, entered as a context by each; ``on_full`` is told of those that find it full.

    It lives on one event loop. Raises GatewayError, status 429, on entering when ``most`` are inside.
    """

    def __init__(self, most: int, on_full: Callable[[], None] | None = None) -> None:
        self.most, self.inside, self._on_full = most, 0, on_full

    def __enter__(self) -> Admission:
        if self.inside >= self.most:
            if self._on_full is not None:
                self._on_full()
            raise GatewayError(
                429, f"the server is full: it has {self.most} requests to answer already; ask again in a second",
                code="server_full", headers={"retry-after": "1"},
            )  # fmt: skip
        self.inside += 1
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.inside -= 1
