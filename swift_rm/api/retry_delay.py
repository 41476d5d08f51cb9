"""How long to wait before a request is made again."""

from __future__ import annotations

import email.utils
import math
import random
import time
from collections.abc import Mapping

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 8.0  # as the openai client waits
LONGEST_RETRY_AFTER_S = 120.0  # a server that asks for more patience is not waited for


def backoff(attempt: int, longest_s: float) -> float:
    """Return the seconds to wait after failed attempt 0, 1, ...: doubled each time, and up to a quarter less, by chance."""
    return min(longest_s, FIRST_WAIT_S * 2.0 ** min(attempt, 30)) * (1 - 0.25 * random.random())


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a reply's ``retry-after-ms`` or ``retry-after`` (seconds, or a date) asks for, None without."""
    for name, divisor in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) / divisor
        except (KeyError, ValueError):
            continue
        return max(0.0, seconds) if not math.isnan(seconds) else None
    date = email.utils.parsedate_tz(headers.get("retry-after", ""))
    try:
        return max(0.0, email.utils.mktime_tz(date) - time.time()) if date else None
    except (ValueError, OverflowError):
        return None
