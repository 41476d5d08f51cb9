"""Open the `openai` client that every endpoint is asked with."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from swift_rm.api.failures import ReplyTooLong
from swift_rm.api.keys import ApiKey, check_address

LARGEST_REPLY, LARGEST_ERROR = 2**30, 2**20  # bytes, unpacked: half a million tokens with 20 alternatives each


def open_client(base_url: str | None, key: ApiKey, timeout_s: float, retries: int) -> Any:
    """Return a client of ``base_url`` (None: OpenAI's own); raise ImportError without the package, ValueError for no address.

    It follows no redirects, which would send questions to a host that nobody named, and reads no reply without end.
    """
    try:
        from openai import DefaultHttpxClient, OpenAI
    except ImportError as error:
        raise ImportError('an endpoint is asked with the openai package: pip install "swift-rm[api]"') from error
    if base_url is not None:
        check_address(base_url, key)

    def bound(response: Any) -> None:
        unpacked, most = response.iter_bytes, LARGEST_REPLY if response.status_code < 300 else LARGEST_ERROR

        def iter_bytes(chunk_size: int | None = None) -> Iterator[bytes]:
            until, size = time.monotonic() + timeout_s, 0  # who asked has stopped waiting by then
            for chunk in unpacked(chunk_size):
                size += len(chunk)
                if size > most or time.monotonic() > until:
                    raise ReplyTooLong(f"a reply of more than {size} bytes")
                yield chunk

        response.iter_bytes = iter_bytes

    http = DefaultHttpxClient(follow_redirects=False, event_hooks={"response": [bound]})
    return OpenAI(api_key=key.value, base_url=base_url, timeout=timeout_s, max_retries=retries, http_client=http)
