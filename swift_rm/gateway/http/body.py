"""A request's body: of the right type, not too large and not too slow; and its JSON."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from swift_rm.gateway.http.disconnects import ClientGone, Receive
from swift_rm.gateway.request.errors import GatewayError, refused

JSON = "application/json"
BODY_S = 30.0  # for a body to arrive
DEPTH = 64  # of lists and objects in each other; tool descriptions, the deepest there are, need a dozen
DROPPED = 2**26  # bytes of a body that is refused and yet read off the line: a client that only sends would not see the reply
CLOSE = {"connection": "close"}  # without it, the server drops the rest of a body
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")  # an escape of half a surrogate pair; emojis have both


async def read_body(
    headers: Mapping[str, str], receive: Receive, most: int, seconds: float = BODY_S, wanted: str = JSON
) -> bytes:
    """Return the bytes of a body of at most ``most``, which says that it is of the type ``wanted``.

    Raises GatewayError: 415 for another type, 413 for a larger body, 408 for one that takes longer than ``seconds``; and
    ClientGone.
    """
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != wanted:
        raise GatewayError(415, f"the body must be of Content-Type {wanted}, got {kind[:60]!r}")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise GatewayError(415, "the body must not be compressed")
    length = headers.get("content-length", "")
    told = int(length[:16]) if length.isdecimal() else 0
    if told > most:
        raise _large(most, CLOSE if told > DROPPED else {})
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                body += message.get("body", b"")
                if len(body) > most:
                    raise _large(most, CLOSE)
                more = message.get("more_body", False)
    except TimeoutError:
        raise GatewayError(408, f"the body did not arrive within {seconds:g} s", headers=CLOSE) from None
    return bytes(body)


def parse(body: bytes) -> dict[str, Any]:
    """Return a body's JSON object; raise GatewayError, status 400, with what is wrong and never its content."""
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise refused(f"the body is not UTF-8: see byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise refused(f"the body is no JSON: {error.msg.lower()} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise _deep() from None
    except ValueError:  # Python's own limit, against texts whose reading takes for ever
        raise refused("the body holds an integer of more digits than are read") from None
    if not isinstance(value, dict):
        raise refused(f"the body must be a JSON object, got {type(value).__name__}")
    _check_depth(value)
    if _HALF.search(body):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise refused("the body holds half of a surrogate pair, which is no text") from None
    return value


def _check_depth(value: dict[str, Any]) -> None:
    """Raise GatewayError, status 400, for JSON so deep that what reads it later might run out of stack."""
    level: list[Any] = [value]
    for _ in range(DEPTH):
        inner = (each.values() if isinstance(each, dict) else each for each in level)
        level = [one for each in inner for one in each if isinstance(one, dict | list)]
        if not level:
            return
    raise _deep()


def _deep() -> GatewayError:
    return refused(f"the body's lists and objects lie in each other more than {DEPTH} deep")


def _large(most: int, headers: Mapping[str, str]) -> GatewayError:
    return GatewayError(413, f"the body is larger than this server takes, {most // 1024} KiB", headers=headers)


def _no_number(name: str) -> NoReturn:
    raise refused(f"the body is no JSON: {name} is no number there")
