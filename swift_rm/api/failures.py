"""What can go wrong with an endpoint, by what is to be done: try again, change the request, or come back later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from swift_rm.selection.candidates import BestOfN


class ApiFailure(OSError):
    """An endpoint failed although it was asked again; ``results`` are what came nevertheless, None where nothing did."""

    def __init__(self, message: str, results: Sequence[BestOfN | None] = ()) -> None:
        super().__init__(message)
        self.results = list(results)


class Hopeless(ValueError):
    """What no other request changes: a wrong key, a model that is not there, a server that is not to be trusted."""


class Refused(ValueError):
    """A request that gets no usable answer however often it is sent; another question's may."""


class Unusable(Refused):
    """A reply that came, and lacks what was asked for."""


class Malformed(Exception):
    """A reply that is none, or a fault on the way to it: worth another try, not before ``wait_s`` where that is known."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s
