"""The server's log: one JSON object a line on stderr, or text for people. Nothing of a prompt, an answer or a key is in it.

An exception is logged by its type and by where it came from, without its words, which may hold a request's content.
"""

from __future__ import annotations

import json
import logging
import traceback
from datetime import UTC, datetime
from typing import Any

from swift_rm.gateway.request.settings import Settings

LOGGER = "swift_rm.gateway"
OTHERS = ("uvicorn", "asyncio", "py.warnings")  # whose messages go the same way
CAP = 2000  # characters of a text in a log
_MINE = "swift_rm_fields"


def configure(settings: Settings) -> None:
    """Send the logs of the gateway and of OTHERS, warnings among them, to stderr, as the settings say; again to change them."""
    logging.captureWarnings(True)
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if settings.log_format == "json" else TextLines())
    for name in (LOGGER, *OTHERS):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(settings.log_level.upper())
    for name in ("uvicorn.error", "uvicorn.access", "uvicorn.asgi"):
        logger = logging.getLogger(name)
        silent = name == "uvicorn.access"  # requests have an event of their own
        logger.handlers, logger.propagate = [logging.NullHandler()] if silent else [], not silent
        logger.setLevel(logging.NOTSET)


def log_event(level: int, event: str, **fields: Any) -> None:
    """Log what happened, with its fields: plain values that JSON knows."""
    logging.getLogger(LOGGER).log(level, event, extra={_MINE: fields})


def log_failure(event: str, error: BaseException, **fields: Any) -> None:
    """Log an exception as an error: types and frames, not its words."""
    log_event(logging.ERROR, event, **fields, **trace_of(error))


def trace_of(error: BaseException) -> dict[str, Any]:
    """Return an exception's type, those it came from, and its frames, the innermost last; not a word of its message."""
    kinds: list[str] = []
    one: BaseException | None = error
    while one is not None and len(kinds) < 8:
        kinds.append(f"{type(one).__module__}.{type(one).__qualname__}".removeprefix("builtins."))
        one = one.__cause__ or one.__context__
    frames = traceback.extract_tb(error.__traceback__)
    return {"exception": kinds, "frames": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-20:]]}


def capped(text: str) -> str:
    """Return a text as a log holds it: not all of a long one."""
    return text if len(text) <= CAP else f"{text[:CAP]}... ({len(text)} characters)"


class JsonLines(logging.Formatter):
    """Write a record as one line of JSON, in ASCII: no control character of a text reaches a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return json.dumps({"ts": _time(record), "level": record.levelname.lower(), **fields_of(record)}, default=str)


class TextLines(logging.Formatter):
    """Write a record for people: time, level, event, then the fields as name=JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields = fields_of(record)
        event = fields.pop("event")
        told = " ".join(f"{key}={json.dumps(value, default=str)}" for key, value in fields.items())
        return f"{_time(record)} {record.levelname:<7} {event} {told}".rstrip()


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return what a record says: an event of ours with its fields, or the first line of another's message and its trace.

    asyncio's further lines show the exception of a task, in its own words.
    """
    if record.name == LOGGER:
        fields: dict[str, Any] = {"event": record.getMessage(), **getattr(record, _MINE, {})}
    else:
        message = record.getMessage().partition("\n")[0]
        fields = {"event": "server", "logger": record.name.partition(".")[0], "message": capped(message)}
    error = record.exc_info[1] if record.exc_info else None
    return {**fields, **trace_of(error)} if error is not None else fields


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
